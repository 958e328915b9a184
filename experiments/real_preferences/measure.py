"""The run: fine-tuning, then reward models and DPO from it, on real pairs."""

import json
import os
import pathlib
import time

import ml_collections
import numpy as np

from experiments import machine
from experiments.real_preferences import rows as rows_lib
from llm import config_args
from llm.data.pairs import Pairs, load_pairs
from llm.data.records import read_records
from llm.errors import UserError
from llm.runs import outputs
from llm.tasks import preference, reward, supervised
from llm.text.tokenizer import load_tokenizer
from llm.text.training import save_sentencepiece, train_sentencepiece

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
FILES = {
  'rasbt': 'preference/rasbt_preference/instruction-data-with-preference.json',
  'harmless': 'preference/hh_rlhf_harmless/test.jsonl.gz',
}
BETA = 0.1
CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{ 'Assistant: ' + message.content + eos_token + '\n' }}
  {%- else -%}
    {{ 'User: ' + message.content + '\n' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Trains on both data sets and writes `result.json`.

  Raises:
    UserError: no workdir, or no data.
  """
  if not workdir:
    raise UserError('no --workdir: name a folder for result.json')
  data = os.environ.get('LLM_DATA')
  if not data:
    raise UserError(
      'LLM_DATA is not set: name the folder of real data (see the config)'
    )
  folder = pathlib.Path(workdir)
  result = {'machine': machine.describe()}
  splits = {
    name: rows_lib.split(_read(pathlib.Path(data) / path), config.seed)
    for name, path in FILES.items()
  }
  _write_tokenizer(config, folder, [train for train, _ in splits.values()])
  result['sft'] = _fine_tune(config, folder, splits)
  for name, (train, held_out) in splits.items():
    result[name] = _data_set(config, folder, name, train, held_out)
  outputs.write_result(workdir, result)


def describe_pairs(pairs: Pairs) -> dict[str, float]:
  """Counts of the rows, and how often the longer completion is chosen.

  `longer` is the share of pairs whose chosen completion has more tokens, plus
  half of those of equal length: the accuracy of that rule.
  """
  examples = pairs.examples
  tokens = np.add.reduceat(examples.loss_mask, examples.offsets[:-1], dtype=int)
  chosen, rejected = tokens.reshape(-1, 2).T
  longer = np.mean(chosen > rejected) + np.mean(chosen == rejected) / 2
  return pairs.counts | {'longer': longer}


def _read(path: pathlib.Path) -> list[rows_lib.Row]:
  return [record.value for record in read_records(str(path))]


def _write_tokenizer(config, folder, parts) -> None:
  texts = (line for part in parts for line in rows_lib.lines(part))
  model = train_sentencepiece(texts, config.vocab_size)
  save_sentencepiece(folder / 'tokenizer', model, CHAT_TEMPLATE)


def _fine_tune(config, folder, splits) -> dict:
  """Fresh weights, trained on the chosen completions of both data sets."""
  fields = _fields('sft', config, config.sft)
  fields.model.update(
    embed_dim=config.embed_dim,
    hidden_dim=config.embed_dim * 11 // 4,
    num_layers=config.num_layers,
    num_heads=2,
    num_kv_heads=2,
    head_dim=config.embed_dim // 2,
    max_length=512,
  )
  fields.tokenizer.path = str(folder / 'tokenizer')
  for part, field in enumerate(('path', 'eval_path')):
    path = folder / f'dialogues.{field}.jsonl'
    rows = [row for split in splits.values() for row in split[part]]
    _write(path, rows_lib.dialogues(rows))
    fields.data[field] = str(path)
  fields.train.batch_size = 4
  fields.optim.warmup_steps = min(20, config.sft.steps)
  fields.export = str(folder / 'model')
  names = ('eval_loss', 'parameters', 'tokens')
  return _train(supervised, fields, folder / 'sft', names)


def _data_set(config, folder, name, train, held_out) -> dict:
  """A reward model, its control and DPO on one data set."""
  paths = {
    part: folder / f'{name}.{part}.jsonl'
    for part in ('train', 'shuffled', 'held_out')
  }
  _write(paths['train'], train)
  _write(paths['shuffled'], rows_lib.shuffled(train, config.seed))
  _write(paths['held_out'], held_out)
  tok = load_tokenizer(folder / 'tokenizer')
  result = {}
  for part in ('train', 'held_out'):
    pairs, _ = load_pairs(str(paths[part]), tok, max_length=config.max_length)
    result[part] = describe_pairs(pairs)
  for run_name, path in (('reward', 'train'), ('control', 'shuffled')):
    fields = _fields('reward', config, config[name].rm)
    _set_pairs(fields, folder, paths[path], paths['held_out'])
    result[run_name] = _train(
      reward, fields, folder / f'{name}.{run_name}', ('loss', *_REWARDS)
    )
  fields = _fields('preference', config, config[name].dpo)
  _set_pairs(fields, folder, paths['train'], paths['held_out'])
  fields.loss.beta = BETA
  result['dpo'] = _train(
    preference, fields, folder / f'{name}.dpo', ('loss', *_REWARDS)
  )
  return result


_REWARDS = (
  'eval_loss',
  'eval_reward_accuracy',
  'eval_reward_margin',
  'eval_chosen_reward',
  'eval_rejected_reward',
)


def _fields(name: str, config, part) -> ml_collections.ConfigDict:
  fields = config_args.load_config(str(CONFIGS / f'{name}.py'))
  fields.seed = fields.data.seed = config.seed
  fields.data.max_length = config.max_length
  fields.data.packing = True
  fields.train.steps = part.steps
  fields.train.eval_every = 0  # at the end only
  fields.train.log_every = 10
  fields.train.keep = 1
  fields.train.best = ''
  fields.optim.lr = part.lr
  fields.optim.schedule = 'linear'
  return fields


def _set_pairs(fields, folder, train, held_out) -> None:
  fields.model.path = str(folder / 'model')
  fields.data.path = str(train)
  fields.data.eval_path = str(held_out)
  fields.train.batch_size = 4  # rows, of several pairs each
  fields.optim.warmup_steps = min(10, fields.train.steps)


def _train(task, fields, folder: pathlib.Path, names) -> dict:
  began = time.perf_counter()
  result = task.run(fields, str(folder))
  seconds = time.perf_counter() - began
  return {'seconds': seconds} | {name: result[name] for name in names}


def _write(path: pathlib.Path, rows) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  path.write_text(text, encoding='utf-8')
