"""Online preference runs: pairs out of rollouts, references, every loss."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest

import llm
from llm import config_args
from llm.align import preference_loss as losses
from llm.align.checks import needs_reference
from llm.data.prompts import Prompt, load_prompts
from llm.decode.completion import Completion
from llm.decode.score import score
from llm.errors import RunError
from llm.parallel.mesh import make_mesh
from llm.rewards.rater import Ratings, make_rater
from llm.rl import checks, online_pairs
from llm.rl.groups import Groups
from llm.rl.rollouts import Rollouts
from llm.runs import report
from llm.runs.train_model import build_train_model, read_spec
from llm.tasks import run
from llm.train.step import make_eval_step

ROOT = pathlib.Path(__file__).parents[2]
LN2 = math.log(2.0)
FIELDS = {
  'data.max_length': 16,
  'data.shuffle': False,
  'train.steps': 2,
  'train.batch_size': 4,
  'train.eval_every': 0,
  'optim.name': 'sgd',  # compiles faster
  'optim.lr': 0.1,
  'rollout.max_new_tokens': 8,
  # Ties are rare.
  'rewards': (('matches', 1.0, {'pattern': '[\x00-M].*'}), ('ends', 0.5)),
}


@pytest.fixture
def make_config(model_folder, write_rows):
  """make_config({'loss.name': 'ipo'}) -> the config of a tiny run."""
  rows = [{'prompt': f'{i} and {i}', 'answer': 2 * i} for i in range(9)]
  path = write_rows(*rows, name='prompts.jsonl')

  def make(changes=None):
    config = config_args.load_config(
      str(ROOT / 'configs' / 'online_preference.py')
    )
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
  """start({'loss.name': 'ipo'}) -> rows of the run's metrics."""
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow

  def start(changes=None, workdir='run'):
    run.run_task(make_config(changes), str(tmp_path / workdir))
    lines = (tmp_path / workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  return start


@pytest.fixture
def own_rewards(tmp_path, monkeypatch):
  """Rewards of one's own, in a module named `own`."""
  (tmp_path / 'own.py').write_text(
    'def length(row, text, finished): return float(len(text))\n'
    'def some(row, text, finished):\n'
    '  return float("nan") if text[:1] < "W" else float(text[1:2] < "p")\n'
    'def none(row, text, finished): return float("inf")\n'
    'def same(row, text, finished): return 1.0\n'
    'def fails(row, text, finished): return row["none"]\n'
  )
  monkeypatch.syspath_prepend(str(tmp_path))


class Setup:
  """The parts of a run without its loop; it is its own train state."""

  def __init__(self, config):
    options = checks.check_online(config)
    spec = read_spec(config)
    self.tokenizer = tok = spec.tokenizer
    prompts, _ = load_prompts(config.data.path, tok, max_length=16)
    self.prompts = prompts
    train_model = build_train_model(config, spec, make_mesh(config.mesh))
    rater = make_rater(config, tok, spec.config.vocab_size)
    maker = online_pairs.PairRollouts(config, train_model, prompts, rater)
    self.rollouts = Rollouts(config, train_model, maker)
    self.params, self.frozen = train_model.params, train_model.frozen
    self.loss_fn = losses.make_preference_loss(
      train_model, config.loss, options
    )

  def draw(self):
    batch, stats = self.rollouts.next_batch(self)
    return jax.device_get(batch), stats

  def sums(self, batch):
    step = jax.jit(make_eval_step(self.loss_fn))
    return step(self.params, batch, jax.random.key(0), self.frozen)


@pytest.fixture
def setup(make_config):
  return lambda changes=None: Setup(make_config(changes))


def test_the_best_and_the_worst_answer_are_a_pair():
  nan = float('nan')
  rewards = [
    *(1.0, 3.0, 2.0),  # the worst is the first
    *(5.0, 5.0, 5.0),  # tied
    *(nan, 2.0, 1.0),  # one is not rated
    *(nan, nan, 1.0),  # one is left
    *(1.0, 0.0, 1.0),  # the first of the best
    *(1.0, 0.0, 0.5),  # the same tokens
  ]
  tokens = [[i] for i in range(18)]
  tokens[15] = tokens[16] = [7, 8]
  answers = [
    Completion(ids, [-1.0], [-1.0], [], [], [], 'stop', 1, {}) for ids in tokens
  ]
  groups = Groups(
    [Prompt((1,), {})] * 18,
    answers,
    Ratings(np.array(rewards, np.float32), {}),
  )
  pairs, counts = online_pairs.choose_pairs(groups, 3)
  assert pairs.tolist() == [
    [1, 0],
    [-1, -1],
    [7, 8],
    [-1, -1],
    [12, 13],
    [-1, -1],
  ]
  assert counts == {'pairs': 3, 'tied': 1, 'equal': 1, 'unpaired': 1}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ipo', 'rpo', 'orpo'])
def test_losses_of_every_kind_run(start, name):
  rows = start({'loss.name': name, 'train.steps': 1})
  [row] = rows
  assert all(math.isfinite(x) for x in row.values())
  assert row['pairs'] == row['weight'] == 4 - row['tied'] - row['equal'] > 0
  assert row['grad_norm'] > 0 and row['skipped'] == row['unrated'] == 0
  if needs_reference(name):
    assert abs(row['kl']) < 1e-4
    first = {'ipo': 25.0, 'rpo': LN2 + row.get('nll', 0.0)}[name]
    assert row['loss'] == pytest.approx(first, abs=1e-3)
  else:
    assert 'kl' not in row


def test_rows_hold_prompt_and_answers_of_each_pair(setup, own_rewards):
  parts = setup({'rewards': (('own:length', 1.0),), 'rollout.group_size': 4})
  batch, stats = parts.draw()
  assert batch['examples'].shape == (4, 2)
  assert stats['pairs'] == (batch['examples'][:, 0] >= 0).sum() > 0
  for row, prompt in enumerate(parts.prompts[:4]):
    if batch['examples'][row, 0] < 0:
      assert not batch['segment_ids'][row].any()
      continue
    texts = []
    for segment in (1, 2):
      at = batch['segment_ids'][row] == segment
      ids, mask = batch['tokens'][row][at], batch['loss_mask'][row][at] > 0
      assert tuple(ids[~mask]) == prompt.token_ids
      assert not mask[: len(prompt.token_ids)].any()
      assert batch['positions'][row][at].tolist() == [*range(len(ids))]
      texts.append(parts.tokenizer.decode(ids[mask].tolist()))
    assert len(texts[0]) > len(texts[1])  # the longer one is chosen


def test_the_reference_is_the_model_before_training(
  setup, model_folder, own_rewards
):
  """A policy that has moved: h is what the decoder's own scores say."""
  parts = setup({'rewards': (('own:length', 1.0),), 'rollout.group_size': 4})
  parts.params = jax.tree.map(lambda x: 0.9 * x, parts.params)
  batch, stats = parts.draw()
  model, params, _ = llm.load(model_folder)
  sums = parts.sums(batch)
  margins, logprobs = [], []
  for row in np.flatnonzero(batch['examples'][:, 0] >= 0):
    h = []
    for segment in (1, 2):
      at = batch['segment_ids'][row] == segment
      ids, mask = batch['tokens'][row][at], batch['loss_mask'][row][at] > 0
      both = []
      for tree in (parts.params, params):
        [scores] = score(model, tree, [ids.tolist()])
        both.append(np.asarray(scores)[mask[1:]].sum())
      assert batch['ref_logprobs'][row, segment - 1] == pytest.approx(
        both[1], abs=1e-3
      )
      h.append(both[0] - both[1])
      logprobs.append(h[-1])
    margins.append(h[0] - h[1])
  wanted = np.mean(np.logaddexp(0.0, -0.1 * np.array(margins)))
  assert sums['loss'] / sums['weight'] == pytest.approx(wanted, abs=1e-4)
  assert stats['kl'] == pytest.approx(np.mean(logprobs), abs=1e-3)


@pytest.mark.slow
def test_the_reference_is_refreshed(start):
  shared = {'train.steps': 6, 'rollout.minibatches': 2, 'optim.lr': 3.0}
  never = start(shared, 'never')
  rows = start(shared | {'rollout.reference_every': 1}, 'always')
  for first in (0, 2, 4):  # of each rollout
    assert abs(rows[first]['kl']) < 1e-4
    assert rows[first]['loss'] == pytest.approx(LN2, abs=1e-5)
  assert abs(never[4]['kl']) > 1e-3
  assert abs(never[4]['loss'] - LN2) > 1e-4


def test_groups_without_a_pair_change_nothing(start, own_rewards):
  [row] = start({'rewards': (('own:same', 1.0),), 'train.steps': 1})
  assert row['tied'] == 4 and row['pairs'] == row['weight'] == row['loss'] == 0
  assert row['grad_norm'] == 0 and 'kl' not in row
  assert row['groups_with_signal'] == 0.0


def test_unrated_answers_are_left_out(start, own_rewards):
  [row] = start({'rewards': (('own:some', 1.0),), 'train.steps': 1})
  assert 0 < row['unrated'] < 8
  assert row['pairs'] + row['tied'] + row['equal'] + row['unpaired'] == 4
  with pytest.raises(RunError, match='none of the 8 completions of rollout 1'):
    start({'rewards': (('own:none', 1.0),)}, 'none')
  with pytest.raises(RunError, match='reward own:fails failed.*KeyError'):
    start({'rewards': (('own:fails', 1.0),)}, 'fails')


def test_minibatches_share_a_rollout(setup):
  parts = setup(
    {'rollout.minibatches': 2, 'rollout.epochs': 2, 'train.steps': 4}
  )
  drawn = [parts.draw() for _ in range(5)]
  assert not parts.rollouts.is_whole()
  rows = [batch['tokens'].tolist() for batch, _ in drawn]
  assert sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3])
  assert [stats['reward_mean'] for _, stats in drawn[:4]] == [
    drawn[0][1]['reward_mean']
  ] * 4
  # The mean over tokens of each step's own batch.
  for batch, _ in drawn:
    mask = (batch['loss_mask'] > 0) & (batch['segment_ids'] == 1)
    pairs = (batch['examples'][:, 0] >= 0).sum()
    np.testing.assert_allclose(
      batch['tokens_per_pair'], mask.sum() / max(pairs, 1)
    )


@pytest.mark.slow
def test_adapters_compare_with_their_base(start):
  rows = start({'lora.rank': 2, 'optim.lr': 10.0, 'train.steps': 3})
  assert abs(rows[0]['kl']) < 1e-4 < abs(rows[2]['kl'])
  assert rows[0]['loss'] == pytest.approx(LN2, abs=1e-5)


@pytest.mark.slow
def test_rewards_rise(start, write_rows, tmp_path):
  held_out = [{'prompt': f'{i} and'} for i in range(8)]
  rows = start(
    {
      'data.eval_path': write_rows(*held_out, name='held_out.jsonl'),
      'train.eval_first': True,
      'train.steps': 12,
      'train.batch_size': 8,
      'train.microbatch_size': 4,
      'optim.lr': 1.0,
      'rollout.group_size': 4,
      'rewards': (('matches', 1.0, {'pattern': '[\x00-M].*'}),),
    }
  )
  first, last = rows[0]['eval_reward_mean'], rows[-1]['eval_reward_mean']
  assert last > first or last == 1.0
  assert rows[-1]['reward_mean'] > rows[1]['reward_mean']
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['reward_mean'] == rows[-1]['reward_mean']
