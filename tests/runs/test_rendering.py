"""`data.system` and its like: the prompts of a run are rendered with them."""

import json

import pytest

from llm import config_args
from llm.errors import UserError
from llm.rl.prompts import load
from llm.runs import samples
from llm.runs.checks import check_data, row_options
from llm.runs.identity import run_identity
from llm.runs.train_model import read_spec
from tests.fixtures import ROOT

ASKED = [{'role': 'user', 'content': 'q'}]
TOOL = {'type': 'function', 'function': {'name': 'clock'}}
TEMPLATE = (
  '{% for t in tools or () %}[{{ t.function.name }}]{% endfor %}'
  '{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}'
  '{% if add_generation_prompt %}<a>{{ mood }}{% endif %}'
)


@pytest.fixture
def make_config(model_folder, write_rows, tmp_path):
  """make_config('rl', 'data.system=S', …), with `tools` in tools.json."""
  folder = tmp_path / 'tokenizer'
  folder.mkdir()
  spec_config = config_args.load_config(str(ROOT / 'configs' / 'rl.py'))
  spec_config.model.path = model_folder
  read_spec(spec_config).tokenizer.save(str(folder))
  (folder / 'chat_template.jinja').write_text(TEMPLATE)
  (tmp_path / 'tools.json').write_text(json.dumps([TOOL]))
  rows = write_rows(
    {'prompt': ASKED, 'answer': 'a'},
    {'prompt': ASKED, 'answer': 'a', 'system': 'own', 'tools': None},
    {'prompt': ASKED, 'answer': 'a', 'chat_template_kwargs': {'mood': '?'}},
  )

  def make(task, *overrides):
    config = config_args.load_config(str(ROOT / 'configs' / f'{task}.py'))
    fields = [f'model.path={model_folder}', f'tokenizer.path={folder}']
    fields += [f'data.path={rows}', 'data.max_length=40', *overrides]
    args = [f'--config.{field}' for field in fields]
    config_args.override_config(config, args)
    return config

  return make


def test_prompts_of_reinforcement_learning(make_config, tmp_path):
  config = make_config(
    'rl',
    'data.system=S',
    f'data.tools={tmp_path}/tools.json',
    'data.chat_template_kwargs={"mood": "!"}',
    'rollout.max_new_tokens=8',
  )
  spec = read_spec(config)
  prompts, *_ = load(config, spec)
  decode = spec.tokenizer.decode
  assert [decode(prompt.token_ids) for prompt in prompts] == [
    '[clock]<s>S<u>q<a>!',
    '[clock]<s>own<u>q<a>!',
    '[clock]<s>S<u>q<a>?',
  ]


def test_samples_during_training(make_config):
  config = make_config('sft', 'sample.prompts=("q",)', 'sample.chat=True')
  spec = read_spec(config)
  config.sample.max_new_tokens = 96 - len('<s>S<u>q<a>')
  options = row_options(config.data).chat
  samples.check_fields(config.sample, spec, options)
  config.data.system = 'SS'
  options = row_options(config.data).chat
  with pytest.raises(UserError, match='its 12 tokens and sample.max_new'):
    samples.check_fields(config.sample, spec, options)


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('data.tools=none.json', "data.tools='none.json' does not exist"),
    ('data.chat_template_kwargs=no', "data.chat_template_kwargs='no': neither"),
    ('data.system=', "data.system='': write one"),
  ],
)
def test_bad_fields_are_refused_before_a_file_is_read(
  make_config, override, message
):
  with pytest.raises(UserError, match=message):
    check_data(make_config('sft', override).data)


def test_a_variable_that_the_template_does_not_read(make_config):
  config = make_config(
    'rl', 'data.chat_template_kwargs={"moood": 1}', 'rollout.max_new_tokens=8'
  )
  with pytest.raises(UserError, match="template_kwargs: .*no 'moood'"):
    load(config, read_spec(config))


def test_the_file_of_tools_may_move(make_config, tmp_path):
  config = make_config('sft', f'data.tools={tmp_path}/tools.json')
  spec = read_spec(config)
  there = run_identity(config, spec, {})
  config.data.tools = 'elsewhere.json'
  assert run_identity(config, spec, {}) == there
  config.data.system = 'S'
  assert run_identity(config, spec, {}) != there
