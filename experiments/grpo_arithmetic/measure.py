"""The run: one part of the experiment, by `config.part`."""

from collections.abc import Callable
import functools
import pathlib
import random
import re
import shutil
import time
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import machine
from experiments.grpo_arithmetic import problems
from llm import api, config_args
from llm.decode.rollout import sample_completions
from llm.errors import UserError
from llm.rewards.functions import exact_answer
from llm.runs import outputs, report
from llm.tasks import rl, supervised

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
MODULE = __name__
GROUP = 8  # completions per prompt in training
CURVE_STEPS = 10  # that a point of a curve is the mean of
WATCHED = (
  'reward_mean',
  'length_wrong',
  'length_right',
  'entropy',
  'groups_with_signal',
)
ANSWERS_AT_ONCE = 512  # in the exam
# Tokens of a completion, the end token included, by part.
MAX_NEW_TOKENS = {'addition': 4, 'length': 24}


def starts_right(row: dict[str, Any], text: str, finished: bool) -> float:
  """1 if the digits that the text begins with are the answer."""
  del finished
  return float(re.match(r'\d*', text)[0] == row['answer'])


def random_reward(
  row: dict[str, Any], text: str, finished: bool, *, seed: int
) -> float:
  """0 or 1 at random."""
  del row, text, finished
  return float(_coin(seed).random() < 0.5)


@functools.lru_cache
def _coin(seed: int) -> random.Random:
  return random.Random(seed)


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Measures one part and writes `result.json`.

  Raises:
    UserError: no workdir, or an unknown part.
  """
  if not workdir:
    raise UserError('no --workdir: name a folder for result.json')
  if config.part not in PARTS:
    raise UserError(
      f'part={config.part!r}: use one of {", ".join(sorted(PARTS))}'
    )
  result = {'machine': machine.describe()}
  result |= PARTS[config.part](config, pathlib.Path(workdir))
  outputs.write_result(workdir, result)


def addition(config, workdir: pathlib.Path) -> dict:
  """GRPO with the reward of right answers, and with a random one."""
  began = time.perf_counter()
  own = config.addition
  train, held_out = problems.split(
    config.seed, own.operands, own.digits, own.held_out + own.trial
  )
  # The last of them tell when to end fine-tuning.
  held_out, trial = held_out[: own.held_out], held_out[own.held_out :]
  demonstrations = problems.demonstrations(train)
  result = {'sft': _tune(config, workdir, demonstrations, trial)}
  rewards = {
    'exact': (('exact_answer', 1.0),),
    'random': ((f'{MODULE}:random_reward', 1.0, {'seed': config.seed}),),
  }
  for name, reward in rewards.items():
    steps = config.addition['rl_steps' if name == 'exact' else 'random_steps']
    result[name] = _reinforce(
      config, workdir, train, name, 'grpo', reward, steps
    )
    if name == 'exact':
      result['seconds'] = time.perf_counter() - began
  return _examine(config, workdir, held_out, result)


def length(config, workdir: pathlib.Path) -> dict:
  """How GRPO and Dr.GRPO change the length of completions.

  All sums are demonstrated, right and wrong, and examined: what matters is
  that the model knows which is which, not that it adds.
  """
  own = config.length
  sums, _ = problems.split(config.seed, own.operands, own.digits, 0)
  demonstrations = problems.with_tails(sums * own.copies, config.seed)
  result = {'sft': _tune(config, workdir, demonstrations, sums)}
  reward = ((f'{MODULE}:starts_right', 1.0),)
  for name in ('grpo', 'dr_grpo'):
    result[name] = _reinforce(
      config, workdir, sums, name, name, reward, own.rl_steps
    )
  return _examine(config, workdir, sums, result)


PARTS: dict[str, Callable[..., dict]] = {
  'addition': addition,
  'length': length,
}


def _fields(name: str, config) -> ml_collections.ConfigDict:
  fields = config_args.load_config(str(CONFIGS / name))
  fields.seed = fields.data.seed = config.seed
  fields.tokenizer.path = 'bytes'
  fields.data.packing = False
  fields.data.max_length = 64
  fields.train.eval_every = 0
  fields.train.keep = 1
  fields.train.best = ''
  return fields


def _tune(
  config,
  workdir: pathlib.Path,
  demonstrations: list[dict],
  trial: list[dict],
) -> dict:
  """SFT of fresh weights, until enough of the completions are right.

  When a model begins to add differs by a hundred steps between seeds, so the
  run continues, some steps at a time, until `sft_goal` of `trial` are right.
  """
  own = config[config.part]
  fields = _tuning_fields(config)
  fields.data.path = problems.write(
    workdir / 'demonstrations.jsonl', demonstrations
  )
  fields.export = str(workdir / 'sft')
  folder = str(workdir / 'tuning')
  began = time.perf_counter()
  for steps in own.sft_steps:
    # Where the run was killed: the steps that it has done.
    rows = report.read_rows(folder)
    if rows and steps < rows[-1]['step']:
      continue
    shutil.rmtree(workdir / 'sft', ignore_errors=True)
    fields.train.steps = steps
    result = supervised.run(fields, folder)
    right = _sample(config, workdir / 'sft', trial, GROUP, 1.0).right
    if right.mean() >= own.sft_goal:
      break
  return {
    'seconds': time.perf_counter() - began,
    'steps': steps,
    'trial': float(right.mean()),
    'parameters': result['parameters'],
  }


def _tuning_fields(config) -> ml_collections.ConfigDict:
  own = config[config.part]
  fields = _fields('sft.py', config)
  fields.model.embed_dim = 32 * own.heads
  fields.model.hidden_dim = 88 * own.heads
  fields.model.num_layers = own.layers
  fields.model.num_heads = fields.model.num_kv_heads = own.heads
  fields.model.head_dim = 32
  fields.model.max_length = 128
  fields.train.batch_size = 64
  fields.optim.lr = own.sft_lr
  fields.optim.schedule = 'constant'
  fields.optim.warmup_steps = min(20, own.sft_steps[0])
  return fields


def _reinforce(
  config,
  workdir: pathlib.Path,
  train: list[dict],
  name: str,
  algorithm: str,
  rewards: tuple,
  steps: int,
) -> dict:
  """A run of `configs/rl.py` from the tuned model, exported as `name`."""
  own = config[config.part]
  fields = _fields('rl.py', config)
  fields.model.path = str(workdir / 'sft')
  fields.data.path = problems.write(workdir / 'prompts.jsonl', train)
  fields.rewards = rewards
  fields.loss.name = algorithm
  fields.loss.kl_coef = 0.0
  fields.rollout.group_size = GROUP
  fields.rollout.max_new_tokens = MAX_NEW_TOKENS[config.part]
  fields.train.steps = steps
  fields.train.batch_size = own.prompts
  fields.optim.lr = own.rl_lr
  fields.optim.schedule = 'linear'
  fields.optim.warmup_steps = own.rl_warmup
  fields.export = str(workdir / name)
  began = time.perf_counter()
  rl.run(fields, str(workdir / f'rl_{name}'))
  seconds = time.perf_counter() - began
  rows = report.read_rows(str(workdir / f'rl_{name}'))
  return {
    'seconds': seconds,
    'logprob_gap': max(row['logprob_gap'] for row in rows),
    'curve': {key: curve(rows, key) for key in WATCHED},
  }


def curve(rows: list[dict], key: str) -> dict[int, float]:
  """Means over `CURVE_STEPS` steps, by the last of them.

  Steps without the key are left out: a rollout without wrong completions has
  no length of them.
  """
  points = {}
  for start in range(0, len(rows), CURVE_STEPS):
    part = rows[start : start + CURVE_STEPS]
    values = [row[key] for row in part if key in row]
    if values:
      points[part[-1]['step']] = float(np.mean(values))
  return points


def _examine(config, workdir, rows: list[dict], result: dict) -> dict:
  """Adds the numbers of each exported model on these prompts."""
  answers = config[config.part].answers
  for name in result:
    if not (workdir / name).is_dir():
      continue
    greedy = _sample(config, workdir / name, rows, 1, 0.0)
    drawn = _sample(config, workdir / name, rows, answers, 1.0)
    result[name] |= summarise(greedy, drawn)
  return result


class Answers(NamedTuple):
  """Of `size` completions of each of some rows: [rows, size] each.

  `right` bool, `lengths` int in tokens, `tells` float: 1 where the first mark
  after the sum tells whether it is right, 0 where it tells the opposite, NaN
  without a mark.
  """

  right: np.ndarray
  lengths: np.ndarray
  tells: np.ndarray


def _sample(
  config, folder: pathlib.Path, rows: list[dict], size: int, temperature: float
) -> Answers:
  """`size` completions of each prompt by a saved model."""
  model, params, tok = api.load(str(folder))
  answers, part = [], max(1, ANSWERS_AT_ONCE // size)
  for start in range(0, len(rows), part):
    prompts = rows[start : start + part]
    answers += sample_completions(
      model,
      params,
      [tok.encode(row['prompt']) for row in prompts],
      group_size=size,
      seed=(config.seed, start),
      max_new_tokens=MAX_NEW_TOKENS[config.part],
      temperature=temperature,
      eos_ids=model.config.eos_ids,
    )
  is_right = starts_right if config.part == 'length' else exact_answer
  return read(rows, answers, tok, is_right)


def read(rows, answers, tok, is_right) -> Answers:
  """Rightness, lengths and marks of `size` completions of each row."""
  size = len(answers) // len(rows)
  found = []
  for i, answer in enumerate(answers):
    text = tok.decode(answer.token_ids)
    right = bool(is_right(rows[i // size], text, True))
    mark = text.lstrip('0123456789-')[:1]
    tells = float(mark == (problems.RIGHT if right else problems.WRONG))
    found.append((right, len(answer.token_ids), tells if mark else np.nan))
  return Answers(*(np.reshape(x, (len(rows), size)) for x in zip(*found)))


def summarise(greedy: Answers, drawn: Answers) -> dict[str, float]:
  """Accuracies and lengths of the completions of an exam.

  Args:
    greedy: one of each prompt.
    drawn: several of each.
  """
  right, lengths, tells = drawn
  result = {
    'greedy': greedy.right.mean(),
    'pass_1': right.mean(),
    f'pass_{right.shape[1]}': right.any(axis=1).mean(),
    'length': lengths.mean(),
    'wrong_answers': (~right).sum(),
  }
  if not np.isnan(tells).all():
    result['marks_tell'] = np.nanmean(tells)
  if right.any():
    result['length_right'] = lengths[right].mean()
  if not right.all():
    result['length_wrong'] = lengths[~right].mean()
  return {name: float(value) for name, value in result.items()}
