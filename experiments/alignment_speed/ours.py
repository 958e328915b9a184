"""llm-jax: what the configs `preference` and `rl` run, some steps at a time."""

import json
import os
from typing import Any
from unittest import mock

import jax

from experiments.alignment_speed import rows
from llm import config_args
from llm.host.memory import keep_freed_memory
from llm.runs import training
from llm.runs.outputs import enable_compilation_cache
from llm.tasks import preference, rl
from llm.train import loop
from llm.train.state import init_state

_REWARD = 'experiments.alignment_speed.rows:reward'


def make_train(folder: str, settings: dict[str, Any]):
  """Returns `train(steps) -> metrics of each`, which resumes where it ended."""
  keep_freed_memory()
  enable_compilation_cache()
  kind = settings['kind']
  task, config = (rl, _rl) if kind == 'grpo' else (preference, _preference)
  made = []  # (job, model, recipe) of the run
  with mock.patch.object(training, 'train', lambda *args: made.append(args)):
    config = config(folder, settings)
    task.run(config, os.path.join(folder, 'run'))
  job, train_model, recipe = made[0]
  state = init_state(train_model.params, job.tx, jax.random.key(0))
  step = training.compile_step(job, train_model, recipe, state)

  def train(steps):
    nonlocal state
    found = []
    schedule = loop.Schedule(int(state.step) + steps)
    state = loop.fit(
      state,
      step,
      recipe.batches.next_batch,
      schedule,
      loop.Hooks(found.append),
      frozen=train_model.frozen,
    )
    return found

  return train


def _preference(folder, settings):
  config = _shared('preference', folder, settings, rows.draw_pairs(settings))
  precomputed = settings['kind'] == 'dpo_precomputed'
  config.loss.reference = 'precomputed' if precomputed else 'frozen'
  config.train.batch_size = settings['batch_size']
  return config


def _rl(folder, settings):
  config = _shared('rl', folder, settings, rows.draw_prompts(settings))
  config.train.batch_size = settings['prompts']
  config.rollout.group_size = settings['group_size']
  config.rollout.max_new_tokens = settings['new_tokens']
  config.loss.kl_coef = 0.0
  config.loss.reduction = 'sequence'
  config.rewards = ((_REWARD, 1.0),)
  return config


def _shared(name, folder, settings, values):
  path = os.path.join(folder, 'ours.jsonl')
  with open(path, 'w', encoding='utf-8') as file:
    file.writelines(json.dumps(value) + '\n' for value in values)
  config = config_args.load_config(f'configs/{name}.py')
  config.model.path = folder
  config.data.path = path
  config.data.shuffle = False
  config.data.max_length = settings['row_tokens']
  config.train.steps = settings['all_steps']
  config.train.eval_every = 0
  config.optim.update(settings['optim'])
  return config
