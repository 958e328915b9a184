"""Rollouts as the data of a run: minibatches, one after the other."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from llm.parallel.sharding import shard_batch
from llm.rl.groups import Groups, shown_completions
from llm.runs.train_model import TrainModel


class Rollout(NamedTuple):
  """A rollout that is to be trained on."""

  columns: dict[str, np.ndarray]  # the rows of a group are consecutive
  stats: dict[str, float]  # numbers about it, for the metrics
  sampled: Groups  # all of it


class Maker(Protocol):
  """What one kind of run makes of the completions that it samples."""

  def make(self, params: Any, number: int) -> Rollout:
    """Samples, rates and scores rollout `number` with what is trained."""

  def finish(
    self, batch: dict[str, np.ndarray]
  ) -> tuple[dict[str, np.ndarray], Mapping[str, float]]:
    """A minibatch with the columns that depend on it, and numbers about it."""

  def is_known(self, number: int) -> bool:
    """True if rollout `number` follows from the parameters and the state."""

  def get_state(self) -> dict[str, Any]:
    """JSON-able; to be taken where `is_known` of the next rollout."""

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to the place of a `get_state`."""


class Rollouts:
  """The `batches.Batches` of a run: minibatches of the newest rollout.

  Its state is the number of rollouts and the maker's; it can be saved where
  `is_whole`.
  """

  def __init__(self, config, train_model: TrainModel, maker: Maker):
    self._config, self._train_model, self._maker = config, train_model, maker
    self._count, self._left, self._shown = 0, deque(), []

  def next_batch(self, state) -> tuple[Any, dict[str, float]]:
    """The next minibatch; makes a rollout with `state.params` if none is left.

    Returns:
      the batch on the devices, and numbers about its rollout.
    """
    if not self._left:
      rollout = self._maker.make(state.params, self._count)
      self._shown = shown_completions(
        rollout.sampled,
        self._config.rollout.group_size,
        self._train_model.spec.tokenizer,
      )
      self._count += 1
      self._left.extend(self._minibatches(rollout))
    batch, stats = self._left.popleft()
    batch, more = self._maker.finish(batch)
    return shard_batch(batch, self._train_model.mesh), stats | more

  def is_whole(self) -> bool:
    """True where a rollout is used up, and the next one's reference is known.

    That is the model before training, or the parameters as they are.
    """
    return not self._left and self._maker.is_known(self._count)

  def completions(self) -> list[dict[str, Any]]:
    """`shown_completions` of the newest rollout; [] before the first one."""
    return self._shown

  def get_state(self) -> dict[str, Any]:
    """JSON-able; to be taken where `is_whole`."""
    return {'rollouts': self._count, **self._maker.get_state()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to the place of a `get_state`."""
    self._count = state['rollouts']
    self._maker.set_state(state)
    self._left.clear()

  def _minibatches(self, rollout: Rollout) -> Iterator[tuple[dict, dict]]:
    """Whole groups, `minibatches` parts an epoch.

    Each epoch has every group once; where there are several steps, in an order
    of its own.
    """
    settings, count = self._config.rollout, self._config.train.batch_size
    part = count // settings.minibatches
    rows = len(next(iter(rollout.columns.values()))) // count  # of a group
    for epoch in range(settings.epochs):
      order = np.arange(count)
      if settings.epochs * settings.minibatches > 1:
        seed = (self._config.seed, self._count, epoch)
        order = np.random.default_rng(seed).permutation(count)
      for start in range(0, count, part):
        groups = order[start : start + part]
        taken = (groups[:, None] * rows + np.arange(rows)).reshape(-1)
        columns = {k: v[taken] for k, v in rollout.columns.items()}
        yield columns, rollout.stats
