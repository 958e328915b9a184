"""Preference runs and reward models on real pairs, through a chat template."""

import itertools
import json
import math

import pytest

from llm import config_args
from llm.data.records import read_records
from llm.runs import report
from llm.tasks import run
from llm.text import chat
from llm.text.tokenizer import load_tokenizer

ROWS = 60  # of a file
SHAPE = {
  'embed_dim': 32,
  'hidden_dim': 64,
  'num_layers': 1,
  'num_heads': 2,
  'num_kv_heads': 1,
  'head_dim': 16,
}
TEMPLATE = (
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>\n'
  '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
)


@pytest.fixture(scope='module')
def tokenizer_folder(data_dir, tmp_path_factory):
  """GPT-2's tokenizer with a chat template."""
  folder = tmp_path_factory.mktemp('tokenizer')
  for path in (data_dir / 'tokenizers/gpt2').iterdir():
    if path.is_file():
      (folder / path.name).write_bytes(path.read_bytes())
  (folder / 'chat_template.jinja').write_text(TEMPLATE)
  tok = load_tokenizer(str(folder))
  assert chat.encode(tok, [{'role': 'user', 'content': 'Hi'}])
  return str(folder)


@pytest.fixture
def start(data_dir, tokenizer_folder, tmp_path, monkeypatch):
  """start('reward', file, rows, changes) -> (rows of metrics, result)."""
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow

  def start(kind, file, changes=None):
    config = config_args.load_config(f'configs/{kind}.py')
    path = tmp_path / 'rows.jsonl'
    records = read_records(str(data_dir / 'preference' / file))
    first = [json.dumps(r.value) for r in itertools.islice(records, ROWS)]
    path.write_text('\n'.join(first))
    fields = {f'model.{name}': value for name, value in SHAPE.items()}
    fields |= {
      'tokenizer.path': tokenizer_folder,
      'data.path': path,
      'data.max_length': 96,
      'data.eval_fraction': 0.2,
      'data.packing': True,
      'train.steps': 4,
      'train.batch_size': 4,
      'optim.lr': 1e-3,
      'optim.warmup_steps': 0,
    }
    args = [f'--config.{k}={v}' for k, v in (fields | (changes or {})).items()]
    config_args.override_config(config, args)
    run.run_task(config, str(tmp_path / 'run'))
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    return report.read_rows(str(tmp_path / 'run')), result

  return start


RASBT = 'rasbt_preference/instruction-data-with-preference.json'
HARMLESS = 'hh_rlhf_harmless/test.jsonl.gz'


@pytest.mark.parametrize('file', [RASBT, HARMLESS])
def test_dpo(start, file):
  rows, result = start('preference', file)
  assert abs(rows[0]['loss'] - math.log(2)) < 1e-4
  assert abs(rows[-1]['reward_margin']) > 1e-3 and result['skipped'] == 0
  assert all(math.isfinite(v) for row in rows for v in row.values())
  if file == RASBT:  # whose pairs are short: several in a row
    assert max(row['weight'] for row in rows) > 4


@pytest.mark.parametrize('file', [RASBT, HARMLESS])
def test_a_reward_model(start, tmp_path, file):
  rows, result = start('reward', file, {'export': str(tmp_path / 'out')})
  assert abs(rows[0]['loss'] - math.log(2)) < 1e-4
  low, high = (result[f'eval_reward_accuracy_{k}'] for k in ('low', 'high'))
  assert low <= result['eval_reward_accuracy'] <= high
  assert result['eval_chance'] == 0.5 and result['eval_count'] >= 5
  assert (tmp_path / 'out' / 'config.json').exists()


def test_rated_answers(start):
  """KTO on rows that come rated, and on pairs."""
  file = 'kto_en_demo/kto_en_demo.json'
  rows, result = start('preference', file, {'loss.name': 'kto'})
  assert abs(rows[0]['loss'] - 0.5) < 1e-4 and result['skipped'] == 0
  assert all(math.isfinite(v) for row in rows for v in row.values())
