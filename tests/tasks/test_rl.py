"""Reinforcement runs: every algorithm, and what holds at their first step."""

import json
import math
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llm import config_args
from llm.data.prompts import load_prompts
from llm.errors import RunError
from llm.parallel.mesh import make_mesh
from llm.rewards.rater import make_rater
from llm.rl import algorithms as rl_algorithms
from llm.rl import checks, trained
from llm.rl import loss as rl_loss
from llm.rl.policy_rollouts import PolicyRollouts
from llm.rl.rollouts import Rollouts
from llm.runs import report
from llm.runs.train_model import build_train_model, read_spec
from llm.tasks import run
from llm.train.step import make_eval_step

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {
  'data.max_length': 16,
  'data.shuffle': False,
  'train.steps': 2,
  'train.batch_size': 4,
  'train.eval_every': 0,
  'optim.name': 'sgd',  # compiles faster
  'optim.lr': 0.1,
  'rollout.group_size': 4,
  'rollout.max_new_tokens': 8,
  # Half of the bytes of a random model: groups differ.
  'rewards': (('matches', 1.0, {'pattern': '[\x00-M].*'}), ('ends', 0.5)),
}


@pytest.fixture
def make_config(model_folder, write_rows):
  """make_config({'loss.name': 'ppo'}) -> the config of a tiny run."""
  rows = [{'prompt': f'{i} and {i}', 'answer': 2 * i} for i in range(9)]
  path = write_rows(*rows, name='prompts.jsonl')

  def make(changes=None):
    config = config_args.load_config(str(ROOT / 'configs' / 'rl.py'))
    fields = {'model.path': model_folder, 'data.path': path}
    for name, value in (fields | FIELDS | (changes or {})).items():
      *groups, last = name.split('.')
      node = config
      for group in groups:
        node = node[group]
      node[last] = value
    return config

  return make


@pytest.fixture
def start(make_config, tmp_path, monkeypatch):
  """start({'loss.name': 'ppo'}) -> rows of the run's metrics."""
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow

  def start(changes=None, workdir='run'):
    run.run_task(make_config(changes), str(tmp_path / workdir))
    lines = (tmp_path / workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  return start


class Setup:
  """The parts of a run without its loop."""

  def __init__(self, config):
    self.config = config
    self.algorithm = checks.check_fields(config)
    spec = read_spec(config)
    tok = spec.tokenizer
    prompts, _ = load_prompts(config.data.path, tok, max_length=16)
    train_model = build_train_model(config, spec, make_mesh(config.mesh))
    self.train_model = trained.with_reference(self.algorithm, train_model)
    rater = make_rater(config, tok, spec.config.vocab_size)
    maker = PolicyRollouts(
      config, self.algorithm, self.train_model, prompts, rater
    )
    self.rollouts = Rollouts(config, self.train_model, maker)
    self.params = trained.with_value_head(
      self.algorithm, spec.config.embed_dim, train_model.params
    )
    loss = rl_loss.make_rl_loss(
      self.train_model, self.algorithm, config.rollout
    )
    self.step = jax.jit(make_eval_step(loss))

  def draw(self):
    return self.rollouts.next_batch(self)

  def sums(self, batch):
    frozen = self.train_model.frozen
    return self.step(self.params, batch, jax.random.key(0), frozen)


@pytest.fixture
def setup(make_config):
  return lambda changes=None: Setup(make_config(changes))


@pytest.mark.slow
@pytest.mark.parametrize('name', rl_algorithms.ALGORITHMS)
def test_every_algorithm_runs(start, name):
  rows = start({'loss.name': name})
  assert [row['step'] for row in rows] == [1, 2]
  for row in rows:
    assert all(math.isfinite(x) for x in row.values())
    assert row['logprob_gap'] < 1e-5
    assert 0 < row['length'] <= 8 and row['reward_min'] <= row['reward_max']
    assert row['reward_mean'] == pytest.approx(
      row['reward_matches'] + 0.5 * row['reward_ends'], abs=1e-6
    )
    assert row['grad_norm'] > 0 and row['skipped'] == row['unrated'] == 0
  if name != 'reinforce':
    assert rows[0]['ratio'] == pytest.approx(1.0, abs=1e-5)
    assert rows[0]['clip_fraction'] == 0.0 or name == 'gspo'
  if rl_algorithms.ALGORITHMS[name].options.get('kl_coef'):
    assert abs(rows[0]['kl']) < 1e-4 < rows[1]['kl_k3'] + 1e-4
    assert rows[1]['kl_k2'] > 1e-9


def test_on_policy_losses_are_what_theory_says(setup):
  grpo = setup({'loss.name': 'grpo', 'loss.kl_coef': 0.0})
  batch, stats = grpo.draw()
  assert 'ref_logprobs' not in batch
  sums = grpo.sums(batch)
  assert sums['weight'] == 16  # answers
  # The mean of the advantages of a group is 0; every ratio is 1.
  assert abs(sums['loss']) < 1e-4
  assert sums['ratio'] == pytest.approx(16.0, abs=1e-4)
  assert stats['logprob_gap'] < 1e-5
  advantages = np.asarray(batch['advantages']).reshape(4, 4)
  assert np.abs(advantages.sum(axis=1)).max() < 1e-5
  assert (advantages.std(axis=1) > 0).mean() == stats['groups_with_signal'] > 0


def test_what_is_shared_of_a_prompt():
  """By the size of a group, the rows of a step, microbatches and devices."""

  def shared(size, rows, microbatches=1, devices=1, rope='default'):
    config = SimpleNamespace(rollout=SimpleNamespace(group_size=size))
    model = SimpleNamespace(
      config=SimpleNamespace(rope=SimpleNamespace(type=rope))
    )
    train_model = SimpleNamespace(
      model=model, mesh=SimpleNamespace(size=devices)
    )
    return rl_loss.rows_of_a_prompt(config, train_model, rows, microbatches)

  assert shared(8, 32) == 8
  assert shared(8, 32, microbatches=2) == 4
  assert shared(8, 32, microbatches=16) == 1
  assert shared(8, 32, devices=4) == 8
  assert shared(8, 32, devices=8) == 1  # four rows each
  assert shared(8, 32, microbatches=2, devices=4) == 4
  assert shared(6, 24, microbatches=4) == 1
  assert shared(8, 32, rope='longrope') == shared(8, 32, rope='dynamic') == 1


def test_reading_prompts_once_changes_nothing(setup):
  """Loss and gradient, with all rows' own prompts and with shared ones."""
  parts = setup({'loss.name': 'grpo', 'loss.kl_coef': 0.1})
  batch, _ = parts.draw()
  config, found = parts.config, []
  for shared in (1, rl_loss.rows_of_a_prompt(config, parts.train_model, 16)):
    loss = rl_loss.make_rl_loss(
      parts.train_model, parts.algorithm, config.rollout, shared
    )
    value = jax.value_and_grad(
      lambda params: loss(params, parts.train_model.frozen, batch, None)[0]
    )
    found.append(jax.jit(value)(parts.params))
  assert shared == 4
  (one, one_grads), (other, other_grads) = found
  assert other == pytest.approx(float(one), abs=1e-5)
  largest = max(abs(x).max() for x in jax.tree.leaves(one_grads))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest),
    one_grads,
    other_grads,
  )


def test_gspo_has_one_ratio_for_an_answer(setup):
  # Old log-probabilities that are wrong, but right in the sum of an answer.
  for name in ('grpo', 'gspo'):
    parts = setup({'loss.name': name, 'loss.kl_coef': 0.0})
    batch, _ = parts.draw()
    mask = np.asarray(batch['mask'])
    places = np.arange(mask.shape[1])
    wrong = np.where(mask, np.sin(places), 0.0)
    wrong -= mask * wrong.sum(1, keepdims=True) / mask.sum(1, keepdims=True)
    old = np.asarray(batch['old_logprobs']).copy()
    old += wrong
    sums = parts.sums(batch | {'old_logprobs': old.astype(np.float32)})
    assert (abs(sums['ratio'] - 16) < 1e-3) == (name == 'gspo')


def test_parts_of_a_batch_add_up(setup):
  for changes in (
    {'loss.name': 'grpo', 'loss.reduction': 'group'},
    {'loss.name': 'ppo'},
  ):
    parts = setup(changes)
    batch, _ = parts.draw()
    whole = parts.sums(batch)
    quarters = [
      parts.sums({k: v[i::4] for k, v in batch.items()}) for i in range(4)
    ]
    assert sum(q['weight'] for q in quarters) == whole['weight']
    assert abs(sum(q['loss'] for q in quarters) - whole['loss']) < 2e-5


def test_minibatches_and_epochs(start):
  shared = {'train.steps': 8, 'rollout.minibatches': 2, 'rollout.epochs': 2}
  rows = start({'loss.kl_coef': 0.0, 'optim.lr': 1.0} | shared)
  rewards = [row['reward_mean'] for row in rows]
  assert rewards[:4] == rewards[:1] * 4 and rewards[4:] == rewards[4:5] * 4
  assert [row['weight'] for row in rows] == [8.0] * 8
  assert rows[0]['ratio'] == pytest.approx(1.0, abs=1e-5)
  assert rows[0]['old_kl'] < 1e-6 < rows[3]['old_kl']
  # The four steps of a rollout have all of its tokens twice.
  half = [sum(row['tokens'] for row in rows[i : i + 2]) for i in (0, 2)]
  assert half[0] == half[1]


@pytest.mark.slow
def test_microbatches_of_a_run(start):
  one = start({'loss.name': 'ppo'}, 'one')
  four = start({'loss.name': 'ppo', 'train.microbatch_size': 4}, 'four')
  for a, b in zip(one, four, strict=True):
    assert a['reward_mean'] == b['reward_mean']
    for name in ('loss', 'grad_norm', 'entropy', 'value'):
      assert a[name] == pytest.approx(b[name], abs=1e-4)


def test_dapo_draws_groups_without_signal_again(setup):
  rare = (('matches', 1.0, {'pattern': '[0-9].*'}),)
  drawn, share = {}, {}
  for rounds in (0, 6):
    dapo = setup(
      {'loss.name': 'dapo', 'rewards': rare, 'rollout.max_resamples': rounds}
    )
    batch, drawn[rounds] = dapo.draw()
    assert batch['tokens'].shape[0] == 16
    assert dapo.rollouts.get_state()['place'] >= 4
    with_signal = np.asarray(batch['advantages']).reshape(4, 4).any(axis=1)
    share[rounds] = with_signal.mean()
  assert drawn[0]['rounds'] == 1 and drawn[6]['rounds'] > 1
  assert share[6] > share[0] == drawn[0]['groups_with_signal']
  # The numbers are those of all groups that were drawn, not of those kept.
  found = drawn[6]['groups_with_signal'] * drawn[6]['rounds'] * 4
  assert found >= share[6] * 4 and drawn[6]['groups_with_signal'] < share[6]
  never = (('matches', 1.0, {'pattern': 'never'}),)
  dapo = setup({'loss.name': 'dapo', 'rewards': never})
  batch, stats = dapo.draw()
  assert stats['rounds'] == 5 and stats['groups_with_signal'] == 0.0
  assert not np.asarray(batch['advantages']).any()
  # 4 prompts in each of 5 rounds; the newest of them are trained on.
  assert dapo.rollouts.get_state()['place'] == 20


def test_the_controller_moves_the_coefficient(start):
  rows = start(
    {
      'loss.name': 'rloo',
      'loss.kl_target': 5.0,
      'loss.kl_horizon': 160.0,
      'train.steps': 3,
    }
  )
  # 16 answers, far below the target: each time by 1 - 0.2 · 16 / 160.
  coefs = [row['kl_coef'] for row in rows]
  np.testing.assert_allclose(coefs, [0.05 * 0.98**i for i in range(3)], 1e-6)


def test_a_policy_of_adapters_has_its_base_as_reference(start, model_folder):
  rows = start({'lora.rank': 2, 'optim.lr': 10.0, 'train.steps': 3})
  assert abs(rows[0]['kl']) < 1e-4 and rows[0]['logprob_gap'] < 1e-5
  assert rows[2]['kl_k3'] > 1e-5 and rows[2]['logprob_gap'] < 1e-5


@pytest.mark.slow
def test_unrated_answers_are_left_out(setup, start, tmp_path, monkeypatch):
  (tmp_path / 'strange.py').write_text(
    'def some(row, text, finished):\n'
    '  return float("nan") if text[:1] < "W" else float(text[1:2] < "p")\n'
    'def none(row, text, finished): return float("inf")\n'
    'def fails(row, text, finished): return row["none"]\n'
    'def unknown(row, text, finished): return float("nan")\n'
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  for name in ('ppo', 'rloo', 'grpo'):
    parts = setup({'loss.name': name, 'rewards': (('strange:some', 1.0),)})
    batch, stats = parts.draw()
    weights = np.asarray(batch['row_weights'])
    assert 0 < stats['unrated'] == (weights == 0).sum() < 16
    assert all(np.isfinite(x).all() for x in batch.values())
    assert not np.asarray(batch['advantages'])[weights == 0].any()
    sums = parts.sums(batch)
    assert all(np.isfinite(x) for x in sums.values())
    if name != 'ppo':
      assert sums['weight'] == weights.sum()
  # A reward without a weight is a metric: it leaves no answer unrated.
  watched = (('ends', 1.0), ('strange:unknown', 0.0))
  stats = setup({'rewards': watched}).draw()[1]
  assert stats['unrated'] == 0 and 'reward_unknown' not in stats
  assert stats['reward_mean'] == stats['reward_ends']
  with pytest.raises(RunError) as caught:
    start({'rewards': (('strange:none', 1.0),)}, 'none')
  for part in (
    'none of the 16 completions of rollout 1',
    'none=inf',
    "'prompt': ",
  ):
    assert part in str(caught.value)
  with pytest.raises(RunError, match='reward strange:fails failed.*KeyError'):
    start({'rewards': (('strange:fails', 1.0),)}, 'fails')


@pytest.mark.slow
def test_no_step_is_lost_where_a_reward_fails(start, tmp_path, monkeypatch):
  """Once the function is fixed, the run resumes as if it had not failed."""
  module = tmp_path / 'mended.py'
  module.write_text(
    'import pathlib\n'
    'calls = 0\n'
    'def breaks(row, text, finished):\n'
    '  global calls\n'
    '  calls += 1\n'
    '  if calls > 40 and not pathlib.Path(__file__).with_name("ok").exists():\n'
    '    raise SystemExit(3)\n'
    '  return float(text[:1] < "M")\n'
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  fields = {'rewards': (('mended:breaks', 1.0),), 'train.steps': 4}
  fields |= {'train.checkpoint_every': 0, 'data.shuffle': True}
  # 16 answers a rollout: the third cannot be rated.
  with pytest.raises(RunError, match='reward mended:breaks failed.*SystemExit'):
    start(fields, 'broken')
  assert [p.name for p in (tmp_path / 'broken/checkpoints').iterdir()] == ['2']
  (tmp_path / 'ok').touch()
  broken, whole = start(fields, 'broken'), start(fields, 'whole')
  assert [row['step'] for row in broken] == [1, 2, 3, 4]
  for one, other in zip(broken, whole, strict=True):
    for name in ('loss', 'reward_mean', 'length', 'grad_norm', 'entropy'):
      assert one[name] == other[name], (one['step'], name)


def test_the_report_shows_answers(start, tmp_path, capsys):
  rows = start({'train.eval_every': 2, 'train.steps': 4})
  path = tmp_path / 'run' / 'answers.jsonl'
  shown = [json.loads(line) for line in path.read_text().splitlines()]
  assert {row['step'] for row in shown} == {2, 4}
  last = [row for row in shown if row['step'] == 4]
  # The best and the worst answer to each of the four prompts of a rollout.
  assert [row['prompt'] for row in last[:2]] == ['3 and 3'] * 2
  assert 4 < len(last) <= 8
  for row in last:
    named = row['rewards']
    assert row['reward'] == named['matches'] + 0.5 * named['ends']
    assert rows[3]['reward_min'] <= row['reward'] <= rows[3]['reward_max']
    assert named['ends'] == float(row['finished'])
  assert last[0]['reward'] >= last[1]['reward']
  printed = capsys.readouterr().out.splitlines()
  begin = next(i for i, line in enumerate(printed) if line.startswith('prompt'))
  assert printed[begin].split() == ['prompt', 'completion', 'reward']
  assert printed[begin + 1].startswith('3 and 3')
  assert printed[begin + 1].split()[-1] == f'{last[0]["reward"]:.3g}'


def test_held_out_prompts_are_answered_greedily(start, write_rows, tmp_path):
  held_out = [{'prompt': f'{i} and'} for i in range(16)]
  path = write_rows(*held_out, name='held_out.jsonl')
  changes = {'data.eval_path': path, 'train.eval_first': True}
  changes |= {'optim.lr': 0.0, 'rollout.overlong_margin': 4}
  rows = start(changes)
  first, last = rows[0], rows[-1]
  names = [n for n in first if n.startswith('eval_') and n != 'eval_s']
  assert {'eval_reward_mean', 'eval_reward_matches', 'eval_finished'} <= set(
    names
  )
  assert [first[n] for n in names] == [last[n] for n in names]
  assert -1.0 <= first['eval_reward_overlong'] <= 0.0
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['first_reward_mean'] == rows[1]['reward_mean']
  assert {name: result[name] for name in names} == {n: last[n] for n in names}


def test_switches_of_the_loss_are_read(setup):
  """The rollout is on policy, so that a ratio bends the gradient alone."""
  plain, corrected = (
    setup({'loss.name': 'grpo', 'loss.kl_coef': 0.1, **more})
    for more in ({}, {'loss.kl_corrected': True})
  )
  batch, _ = plain.draw()
  ratio = 0.5
  moved = batch | {
    'old_logprobs': batch['old_logprobs'] - np.float32(np.log(ratio)),
    'ref_logprobs': batch['ref_logprobs'] + 1.0,
    'advantages': np.zeros_like(batch['advantages']),
  }
  sums = [float(parts.sums(moved)['loss']) for parts in (plain, corrected)]
  assert sums[1] == pytest.approx(ratio * sums[0], rel=1e-4) and sums[0] > 0
  bounded = setup({'loss.name': 'grpo', 'loss.dual_clip': 3.0})
  free = setup({'loss.name': 'grpo'})
  bad = batch | {
    'old_logprobs': batch['old_logprobs'] - np.float32(np.log(8.0)),
    'ref_logprobs': batch['old_logprobs'],
    'advantages': -np.ones_like(batch['advantages']),
  }
  worst, least = (parts.sums(bad)['loss'] for parts in (free, bounded))
  weight = batch['row_weights'].sum()
  np.testing.assert_allclose(
    (worst, least), (8 * weight, 3 * weight), rtol=1e-2
  )
