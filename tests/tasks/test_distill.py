"""Distillation: the loss, who writes which batch, what is learned."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llm
from llm import config_args
from llm.align import checks, distill_data
from llm.align.teacher import open_teacher, read_teacher
from llm.decode.completion import Completion
from llm.errors import UserError
from llm.losses.distill import generalized_jsd_loss
from llm.losses.language import next_token_targets
from llm.parallel.mesh import make_mesh
from llm.runs import report
from llm.runs.train_model import build_train_model, read_spec
from llm.tasks import run

ROOT = pathlib.Path(__file__).parents[2]
ROWS = [
  {'prompt': f'{i} and {i}:', 'completion': 'ab' * (1 + i % 3)}
  for i in range(12)
]
FIELDS = {
  'data.max_length': 24,
  'data.shuffle': False,
  'train.steps': 2,
  'train.batch_size': 4,
  'train.eval_every': 0,
  'optim.name': 'sgd',  # compiles faster
  'optim.lr': 0.1,
  'optim.warmup_steps': 0,
  'rollout.max_new_tokens': 6,
}


@pytest.fixture
def make_config(model_folder, teacher_folder, write_rows):
  """make_config({'loss.beta': 1.0}) -> the config of a tiny run."""
  path = write_rows(*ROWS, name='rows.jsonl')

  def make(changes=None):
    config = config_args.load_config(str(ROOT / 'configs' / 'distill.py'))
    fields = {
      'model.path': model_folder,
      'teacher.path': teacher_folder,
      'data.path': path,
    }
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
  """start({'loss.beta': 1.0}) -> rows of the run's metrics."""
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow

  def start(changes=None, workdir='run'):
    run.run_task(make_config(changes), str(tmp_path / workdir))
    lines = (tmp_path / workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  return start


class Setup:
  """The parts of a run without its loop; it is its own train state."""

  def __init__(self, config):
    checks.check_distill(config)
    spec = read_spec(config)
    teacher = open_teacher(config, spec)
    self.examples, _ = distill_data.load(config, spec, teacher)
    mesh = make_mesh(config.mesh)
    train_model = build_train_model(config, spec, mesh)
    train_model.frozen['teacher'] = read_teacher(teacher, mesh)
    self.params, self.tokenizer = train_model.params, spec.tokenizer
    self.batches = distill_data.Batches(
      config, train_model, teacher, self.examples
    )

  def draw(self):
    batch, stats = self.batches.next_batch(self)
    return jax.device_get(batch), stats


@pytest.fixture
def setup(make_config):
  return lambda changes=None: Setup(make_config(changes))


def logits_of(folder, batch):
  """float[B, T, V] of the ids that are tokens."""
  model, params, tokenizer = llm.load(folder)
  forward = jax.jit(model.apply)  # one program, not one per operation
  logits, _ = forward(
    {'params': params},
    batch['tokens'],
    positions=batch['positions'],
    segment_ids=batch['segment_ids'],
  )
  return logits[..., : tokenizer.vocab_size]


def test_the_loss_is_the_divergence_from_the_teacher(
  start, setup, model_folder, teacher_folder
):
  off = {
    'rollout.lmbda': 0.0,
    'rollout.max_new_tokens': checks.MAX_NEW_TOKENS,
    'train.steps': 1,
    'train.microbatch_size': 2,
  }
  batch, stats = setup(off).draw()
  assert stats['on_policy'] == 0.0 and stats['examples'] == 4
  [row] = start(off | {'loss.beta': 0.3, 'loss.temperature': 2.0})
  _, weights = next_token_targets(
    *(jnp.asarray(batch[n]) for n in ('tokens', 'loss_mask', 'segment_ids'))
  )
  folders = model_folder, teacher_folder
  logits = [logits_of(folder, batch) for folder in folders]
  total, weight, metrics = jax.jit(
    functools.partial(generalized_jsd_loss, beta=0.3, temperature=2.0)
  )(*logits, weights)
  assert row['loss'] == pytest.approx(float(total / weight), rel=1e-5)
  for name, value in metrics.items():
    assert row[name] == pytest.approx(float(value / weight), rel=1e-5)
  assert row['weight'] == sum(len(r['completion']) + 1 for r in ROWS[:4])


def test_batches_are_on_policy_by_chance_of_the_seed(setup, monkeypatch):
  def sample(model, params, prompts, **settings):
    return [
      Completion([97], [0.0], [0.0], [], [], [], 'length', len(p), {})
      for p in prompts
    ]

  monkeypatch.setattr(distill_data, 'sample_completions', sample)
  flags = {}
  for lmbda in (0.0, 0.4, 1.0):
    settings = {'rollout.lmbda': lmbda}
    if not lmbda:  # no answer is drawn
      settings['rollout.max_new_tokens'] = checks.MAX_NEW_TOKENS
    parts = setup(settings)
    flags[lmbda] = [parts.draw()[1]['on_policy'] for _ in range(12)]
  assert not any(flags[0.0]) and all(flags[1.0])
  chance = [np.random.default_rng((0, n)).random() < 0.4 for n in range(12)]
  assert flags[0.4] == chance and 0 < sum(chance) < 12


@pytest.mark.slow
def test_new_answers_are_greedy_ones_of_their_writer(
  setup, model_folder, teacher_folder
):
  parts = setup(
    {
      'rollout.lmbda': 0.5,
      'rollout.seq_kd': True,
      'rollout.temperature': 0.0,
    }
  )
  writers = set()
  for start in (0, 4, 8):
    batch, stats = parts.draw()
    writers.add(stats['on_policy'])
    assert set(batch) == {'tokens', 'segment_ids', 'positions', 'loss_mask'}
    folder = model_folder if stats['on_policy'] else teacher_folder
    best = np.asarray(logits_of(folder, batch)).argmax(axis=-1)
    learned = batch['loss_mask'][:, 1:]
    assert (best[:, :-1] == batch['tokens'][:, 1:])[learned].all()
    assert learned.sum() == stats['loss_tokens'] == 4 * stats['length']
    for row, asked in enumerate(ROWS[start : start + 4]):
      prompt = parts.tokenizer.encode(asked['prompt'])
      assert batch['tokens'][row, : len(prompt)].tolist() == prompt
      assert not batch['loss_mask'][row, : len(prompt)].any()
      assert batch['loss_mask'][row, len(prompt)]
  assert writers == {0.0, 1.0}


def test_samples_follow_seed_and_number_of_the_batch(setup):
  drawn = []
  for seed in (0, 0, 1):
    parts = setup({'rollout.lmbda': 1.0, 'seed': seed})
    drawn.append([parts.draw()[0]['tokens'].tolist() for _ in range(3)])
  assert drawn[0] == drawn[1] != drawn[2]
  assert drawn[0][0] != drawn[0][1]
  other = setup({'rollout.lmbda': 1.0})
  other.draw()
  state = json.loads(json.dumps(other.batches.get_state()))
  again = setup({'rollout.lmbda': 1.0})
  again.batches.set_state(state)
  assert again.draw()[0]['tokens'].tolist() == drawn[0][1]


def test_conversations_are_answered_from_their_last_question(setup, write_rows):
  turns = [
    {'role': 'user', 'content': 'a'},
    {'role': 'assistant', 'content': 'b'},
    {'role': 'user', 'content': 'c'},
    {'role': 'assistant', 'content': 'd'},
  ]
  whole = write_rows(*[{'messages': turns}] * 4, name='whole.jsonl')
  asked = write_rows(*[{'messages': turns[:3]}] * 4, name='asked.jsonl')
  batches = []
  for path in (whole, asked):
    parts = setup(
      {
        'data.path': path,
        'rollout.lmbda': 1.0,
      }
    )
    batches.append(parts.draw()[0])
  text = parts.tokenizer.decode(batches[0]['tokens'][0].tolist())
  assert text.startswith('<u>a<a>b<u>c<a>')
  for name, value in batches[0].items():
    np.testing.assert_array_equal(value, batches[1][name])


@pytest.mark.slow
def test_the_student_becomes_the_teacher(start, write_rows):
  """Adapters with dropout, on both kinds of batches."""
  rows = start(
    {
      'data.eval_path': write_rows(*ROWS[:5], name='held_out.jsonl'),
      'train.steps': 12,
      'train.eval_first': True,
      'optim.lr': 3.0,
      'lora.rank': 4,
      'lora.dropout': 0.1,
    }
  )
  first, last = rows[0], rows[-1]
  assert last['eval_loss'] < 0.8 * first['eval_loss']
  assert {'eval_agreement', 'eval_forward_kl', 'eval_reverse_kl'} <= set(last)
  assert {row['on_policy'] for row in rows[1:]} == {0.0, 1.0}


def test_prompts_without_answers(setup, write_rows):
  prompts = [{'prompt': row['prompt']} for row in ROWS]
  path = write_rows(*prompts, {'prompt': 'long' * 9}, name='prompts.jsonl')
  asked = setup({'data.path': path, 'rollout.lmbda': 1.0})
  whole = setup({'rollout.lmbda': 1.0})
  assert len(asked.examples) == 12  # the long one is left out
  for _ in range(2):
    ours, theirs = asked.draw()[0], whole.draw()[0]
    np.testing.assert_array_equal(ours['tokens'], theirs['tokens'])
    np.testing.assert_array_equal(ours['loss_mask'], theirs['loss_mask'])


@pytest.mark.slow
def test_other_held_out_rows_are_another_run(start, write_rows):
  one, two = (write_rows(*ROWS[:n], name=f'held_out_{n}.jsonl') for n in (1, 2))
  assert 'eval_loss' in start({'data.eval_path': one})[-1]
  with pytest.raises(UserError, match='of another run: held_out is'):
    start({'data.eval_path': two, 'train.steps': 3})
