"""llm-jax: the trainer's own source, step, loop and checkpoints."""

import functools
import json
import statistics
import tempfile
import time
import types
from typing import Any

import jax
import jax.numpy as jnp

from experiments.training_speed.rows import draw_rows
from llm.align.supervised_loss import make_training_loss
from llm.checkpoints.source import open_checkpoint
from llm.checkpoints.train_state import Checkpoints
from llm.data.examples import Example, from_list
from llm.data.pipeline import make_source
from llm.host.memory import keep_freed_memory
from llm.models.transformer import Transformer
from llm.parallel.mesh import make_mesh, on_mesh
from llm.parallel.sharding import shard_batch
from llm.runs.outputs import enable_compilation_cache
from llm.runs.train_model import ModelSpec, TrainModel
from llm.train import loop
from llm.train.optim import make_optimizer
from llm.train.state import init_state
from llm.train.step import make_train_step

_METRICS = ('loss', 'tokens', 'grad_norm', 'skipped', 'bad_streak', 'accuracy')


class Trainer:
  """What `tasks.supervised` puts together, on rows that are made up."""

  def __init__(self, folder: str, settings: dict[str, Any]):
    keep_freed_memory()
    enable_compilation_cache()
    source = open_checkpoint(folder)
    mesh = make_mesh(types.SimpleNamespace(data=1, fsdp=1, tensor=1))
    params = source.load(jnp.float32)
    spec = ModelSpec(None, None, source.config, None, None)
    model = Transformer(source.config)
    train_model = TrainModel(spec, model, mesh, params, {})
    optim = types.SimpleNamespace(**settings['optim'])
    tx = make_optimizer(optim, settings['all_steps'], params)
    step = make_train_step(
      make_training_loss(train_model, 0.0), tx, clip_norm=optim.clip_norm
    )
    self._step = on_mesh(jax.jit(step, donate_argnums=0), mesh)
    self._state = init_state(params, tx, jax.random.key(0))
    self._source = make_source(
      from_list(map(Example, *draw_rows(settings))),
      batch_size=settings['batch_size'],
      max_length=settings['tokens'],
      packing=False,
      shuffle=False,
      seed=0,
    )
    self._mesh = mesh

  def train(self, steps: int) -> list[float]:
    """Trains for so many more steps; returns their losses."""
    return [metrics['loss'] for metrics in self._fit(self._step, steps)]

  def split(self, steps: int) -> dict[str, float]:
    """Where the time goes, in seconds of a step.

    Trains `steps` steps with a checkpoint halfway and one at the end, as the
    runs do; then as many with a step that computes nothing, so that only the
    host's work is left: data, dispatch and a line of metrics.
    """
    half = max(1, steps // 2)
    with tempfile.TemporaryDirectory() as folder:
      with Checkpoints(folder, keep=1, identity={}) as checkpoints:

        def save(state, scores):
          where = self._source.get_state()
          checkpoints.save(int(state.step), state, where, scores)

        began = time.perf_counter()
        found = self._fit(self._step, steps, save=save, save_every=half)
        checkpoints.wait()
        whole = (time.perf_counter() - began) / steps
    data = sum(metrics['data_s'] for metrics in found) / steps
    saving = sum(metrics.get('save_s', 0.0) for metrics in found) / 2
    # Between two steps, without evaluation and saving.
    tokens = found[0]['tokens']
    step = statistics.median(
      tokens / metrics['tokens_per_s'] for metrics in found[1:]
    )
    return {
      'step_s': step,
      'data_s': data,
      'compute_s': step - data,
      'save_blocks_s': saving,
      'step_with_saves_s': whole,
      'host_s': self._host_seconds(200),
    }

  def _host_seconds(self, steps: int) -> float:
    @functools.partial(jax.jit, donate_argnums=0)
    def nothing(state, batch, key, frozen):
      del batch, key, frozen
      return state, {name: jnp.zeros(()) for name in _METRICS}

    self._fit(nothing, 2)
    began = time.perf_counter()
    self._fit(nothing, steps)
    return (time.perf_counter() - began) / steps

  def _fit(self, step, steps, save=None, save_every=0):
    """Metrics of `steps` more steps, each written as the runs write theirs."""
    found = []
    # The loop counts from the state's step, which `nothing` leaves as it is.
    schedule = loop.Schedule(
      int(self._state.step) + steps, save_every=save_every
    )

    def next_batch(state):
      del state
      batch, stats = next(self._source)
      return shard_batch(batch, self._mesh), stats

    with tempfile.TemporaryFile('w') as file:

      def on_metrics(metrics):
        file.write(json.dumps(metrics) + '\n')
        file.flush()
        found.append(metrics)

      hooks = loop.Hooks(on_metrics, save=save)
      self._state = loop.fit(self._state, step, next_batch, schedule, hooks)
    return found
