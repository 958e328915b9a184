"""A run that is refused is refused before JAX is imported."""

import json
import os
import subprocess
import sys

import pytest

from llm.data.records import read_records
from llm.errors import UserError
from llm.runs import checks
from llm.tasks.run import TASKS
from tests.fixtures import ROOT

# Refuses to import JAX, then runs the commands of its input in turn.
PROGRAM = """
import contextlib, importlib, io, json, sys

class NoJax:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in ('jax', 'jaxlib', 'flax'):
      raise AssertionError(f'{name} was imported')

sys.meta_path.insert(0, NoJax())
modules, commands = json.load(sys.stdin)
for name in modules:
  importlib.import_module(name)
from llm import command
said = []
for args in commands:
  text = io.StringIO()
  out = contextlib.redirect_stdout(io.StringIO())
  with contextlib.redirect_stderr(text), out:
    status = command.main(['launch.py', *args])
  said.append((status, text.getvalue()))
print(json.dumps(said))
"""
# What stands in one line is checked by one room: all of it must stay light.
LIGHT = (
  'llm.command llm.config_args llm.errors llm.start llm.sweeps.sweep '
  'llm.tasks llm.tasks.checks llm.tasks.run llm.tasks.training_fields '
  'llm.runs.base llm.runs.checks llm.runs.export_checks '
  'llm.align.checks llm.rl.checks llm.rl.algorithms llm.rewards.functions '
  'llm.engine.checks llm.engine.loading llm.engine.output llm.engine.requests '
  'llm.checkpoints.source llm.decode.sampling_params llm.losses.options '
  'llm.data.dataset llm.data.pairs llm.data.prompts llm.data.rated '
  'llm.data.steps llm.host.memory llm.host.terminal llm.models.config '
  'llm.models.lora_config llm.parallel.checks llm.preview.rows '
  'llm.preview.show llm.preview.summary llm.tasks.preview llm.text.tokenizer '
  'llm.train.checks'
).split()
FRESH = [
  'model.embed_dim=16',
  'model.num_heads=2',
  'model.num_kv_heads=1',
  'tokenizer.path=bytes',
]
GOOD = {
  'pair': {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'},
  'prompt': {'prompt': 'a', 'answer': 'b'},
  'rated': {'prompt': 'a', 'completion': 'b', 'label': True},
  'steps': {'prompt': 'a', 'completions': ['b'], 'labels': [True]},
  'text': {'prompt': 'a', 'completion': 'b'},
}
# Per config: its rows, a wrong value, and a first row that is malformed; each
# with what is said of it.
TRAINING = {
  'pretrain': (
    'text',
    ('optim.name=adm', "optim.name='adm': use one of adamw"),
    ({'txt': 'a'}, 'row 1: is of no known shape'),
  ),
  'sft': (
    'text',
    ('train.steps=0', 'train.steps=0: use 1 or more'),
    ({'prompt': 'a', 'completion': 1}, 'row 1: completion=1: give a string'),
  ),
  'lora': (
    'text',
    ('lora.alpha=0.0', 'lora.alpha=0.0: use a number above 0'),
    ('{"prompt": ', 'row 1: not valid JSON'),
  ),
  'preference': (
    'pair',
    ('loss.name=dop', "loss.name='dop': use one of dpo, cdpo"),
    ({'prompt': 'a', 'chosen': 'b'}, 'row 1: is no preference row'),
  ),
  'preference loss.name=kto': (
    'rated',
    ('loss.beta=0.0', 'loss.beta=0.0: use a number above 0'),
    (GOOD['rated'] | {'label': 1}, 'row 1: label=1: give true'),
  ),
  'reward': (
    'pair',
    ('data.overlong=split', "data.overlong='split': completions are truncated"),
    (GOOD['pair'] | {'margin': 'x'}, "row 1: margin='x': give a number"),
  ),
  'reward loss.name=process': (
    'steps',
    ('loss.center_coef=1.0', 'loss.center_coef=1.0: process does not read it'),
    (GOOD['steps'] | {'labels': []}, 'row 1: has 1 completions and 0 labels'),
  ),
  'rl': (
    'prompt',
    ('rollout.group_size=1', 'rollout.group_size=1: grpo compares'),
    ({'prompt': 'a'}, "row 1: has no 'answer', which the reward"),
  ),
  'online_preference': (
    'prompt',
    ('data.max_length=4096', 'data.max_length=4096: the model takes 2048'),
    ({'answer': 'a'}, 'row 1: has no prompt'),
  ),
  'distill': (
    'text',
    ('loss.beta=2.0', 'loss.beta=2.0: use 0'),
    ({'asked': 'a'}, 'row 1: is of no known shape'),
  ),
}


def run(commands):
  """(status, what was said) of each command, none of which may import JAX."""
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    input=json.dumps([LIGHT, commands]),
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.fixture
def cases(model_folder, write_rows, tmp_path):
  """[(command, what it is refused with)], four for each kind of run."""
  cases = []

  def add(kind, wanted, *fields):
    config, *more = kind.split()
    args = [f'--config.{field}' for field in (*more, *fields)]
    cases.append(([f'--config={config}', *args], wanted))

  for kind, (rows, wrong, (bad_row, bad_message)) in TRAINING.items():
    name = kind.replace(' ', '_')
    good = write_rows(GOOD[rows], name=f'{name}_good.jsonl')
    bad = write_rows(bad_row, GOOD[rows], name=f'{name}_bad.jsonl')
    plain = [*FRESH, f'data.path={good}', 'optim.warmup_steps=0']
    teacher = [f'teacher.path={model_folder}'] * (kind == 'distill')
    fields = [*plain, *teacher]
    add(kind, 'unknown field --config.trian.steps', *fields, 'trian.steps=1')
    add(kind, wrong[1], *fields, wrong[0])
    add(kind, "'/no/where' does not exist", *fields, 'data.path=/no/where')
    add(kind, "model.path='/no' does not", *fields, 'model.path=/no')
    add(kind, bad_message, *fields, f'data.path={bad}')
  add('distill', "teacher.path='/no': does", *plain, 'teacher.path=/no')
  add('sft', 'tokenizer: /no does not exist', *plain, 'tokenizer.path=/no')
  add('lora', '/no: no such folder: give', f'model.path={model_folder}',
      f'data.path={good}', 'lora.path=/no')  # fmt: skip
  (tmp_path / 'file').write_text('x')
  export = f'export={tmp_path}/file/out'
  add('sft', 'file is not a folder', *FRESH, f'data.path={good}', export)
  cases = [
    ([*args, f'--workdir={tmp_path / "run"}'], wanted) for args, wanted in cases
  ]

  model, output = f'model.path={model_folder}', f'output={tmp_path}/out.jsonl'
  bad = write_rows({'prompt': 'a', 'sampling': {'top_p': 2}}, name='bad.jsonl')
  add('generate', 'did you mean --config.prompt?', 'promt=a')
  add('generate', "dtype='int9': use", model, 'prompt=a', 'dtype=int9')
  add('generate', "'/no' does not exist", 'model.path=/no', 'prompt=a')
  add('generate', 'cannot be written (Not a directory)', model, 'prompt=a',
      f'output={tmp_path}/file/out.jsonl')  # fmt: skip
  add('generate', 'line 1: sampling.top_p = 2', model, output,
      f'prompts_file={bad}')  # fmt: skip
  add('score', 'did you mean --config.output?', 'outptu=a')
  add('score', 'batch_size=0: use 1', model, output, 'input=a', 'batch_size=0')
  add('score', "input='/no' does not exist", model, output, 'input=/no')
  add('score', "line 1: unknown key 'sampling'", model, output, f'input={bad}')
  add('preview', "kind='stf': use one of sft, pref", 'kind=stf')
  add('preview', "'/no' does not exist", 'tokenizer.path=bytes',
      'data.path=/no')  # fmt: skip
  add('quickstart:smoke', 'unknown field --config.sft.step', 'sft.step=1')
  add('quickstart:smoke', "rl: loss.name='grop': use", 'rl.loss.name=grop')
  add('quickstart:smoke', 'world.size=1: use', 'world.size=1')
  args = ['--config=quickstart:smoke', f'--workdir={tmp_path}/file']
  cases.append((args, 'file: is a file; name a folder'))
  return cases


def test_refusals_come_before_jax(cases, tmp_path):
  said = run([args for args, _ in cases])
  for (args, wanted), (status, message) in zip(cases, said, strict=True):
    assert wanted in message, (args, message)
    assert status == 2 and message.startswith('error: '), (args, message)
    assert message.count('\n') == 1
  assert not (tmp_path / 'run').exists()  # nothing was begun


def test_a_preview_needs_no_jax(write_rows, tmp_path):
  args = ['--config=preview', '--config.tokenizer.path=bytes']
  args.append(f'--config.data.path={write_rows(GOOD["text"])}')
  assert run([[*args, f'--config.output={tmp_path}/out.jsonl']]) == [[0, '']]
  row = json.loads((tmp_path / 'out.jsonl').read_text())
  assert row['token_ids'] == [256, ord('a'), ord('b'), 257]


def test_every_kind_of_run_is_among_the_refused(cases):
  configs = {args[0].split('=')[1].split(':')[0] for args, _ in cases}
  assert configs == {path.stem for path in (ROOT / 'configs').glob('*.py')}
  assert set(TASKS) <= configs


def test_packages_of_an_extra_are_named_with_it(tmp_path, monkeypatch):
  rows = tmp_path / 'rows.parquet'
  rows.write_bytes(b'PAR1')
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(UserError, match='needs pyarrow.*"llm-jax.train."'):
    next(read_records(str(rows)))
  monkeypatch.setattr(checks.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='needs grain.*"llm-jax.train."'):
    checks.check_packages()
