"""The stages that turn logits into what a token is drawn from, in any order.

Processors move logits, filters set those of unlikely tokens to -inf. The order
is data: `DEFAULT_ORDER` is that of `generate` in `transformers` 5, with the
penalties of other systems beside the one they resemble and XTC last. Settings
are traced and per row. A stage, and each group of stages, is skipped by a
`lax.cond` when it is off in every row of the batch; where it runs, the rows in
which it is off keep their logits bit for bit. So a row's token does not depend
on its neighbours, and a stage that nobody uses costs nothing.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from llm.decode import filters
from llm.decode import logits as processors
from llm.decode.rows import History, RowSampling

DEFAULT_ORDER = (
  'bias',
  'repetition_penalty',
  'presence_penalty',
  'frequency_penalty',
  'dry',
  'no_repeat_ngram',
  'min_new_tokens',
  'permitted',
  'constraint',
  'temperature',
  'top_k',
  'top_p',
  'min_p',
  'typical',
  'epsilon',
  'eta',
  'xtc',
)

_XTC_DRAW = 0x587463
"""Folded into a position's key for XTC's own draw."""


class Context(NamedTuple):
  """What a stage may read besides the logits: of B rows, or of one in a stage.

  Attributes:
    settings: of the rows.
    history: their tokens so far.
    key: typed keys [B] of the rows at this position (for XTC).
    allowed: bool[B, V], the ids that a constraint allows next; None without
      one.
  """

  settings: RowSampling
  history: History
  key: jax.Array
  allowed: jax.Array | None


@dataclasses.dataclass(frozen=True)
class _Stage:
  """`is_on(settings) -> bool[B]`, and a function of one row's logits.

  A costly stage has a `lax.cond` of its own; the others are elementwise and
  run with their group, which compiles faster than a branch each.
  """

  is_on: Callable[[RowSampling], jax.Array]
  apply: Callable[[jax.Array, Context], jax.Array]
  costly: bool = True


PROCESSORS = {
  'bias': _Stage(
    lambda s: s.biased,
    lambda x, c: processors.bias(x, c.settings.bias),
    costly=False,
  ),
  'repetition_penalty': _Stage(
    lambda s: s.repetition_penalty != 1.0,
    lambda x, c: processors.repetition_penalty(
      x,
      c.settings.repetition_penalty,
      c.history.prompt_seen | (c.history.output_counts > 0),
    ),
    costly=False,
  ),
  'presence_penalty': _Stage(
    lambda s: s.presence_penalty != 0.0,
    lambda x, c: processors.presence_penalty(
      x, c.settings.presence_penalty, c.history.output_counts
    ),
    costly=False,
  ),
  'frequency_penalty': _Stage(
    lambda s: s.frequency_penalty != 0.0,
    lambda x, c: processors.frequency_penalty(
      x, c.settings.frequency_penalty, c.history.output_counts
    ),
    costly=False,
  ),
  'dry': _Stage(
    lambda s: s.dry_multiplier > 0.0,
    lambda x, c: processors.dry(
      x,
      c.settings.dry_multiplier,
      c.settings.dry_base,
      c.settings.dry_allowed_length,
      c.settings.dry_breakers,
      c.history.tokens,
      c.history.length,
    ),
  ),
  'no_repeat_ngram': _Stage(
    lambda s: s.no_repeat_ngram > 0,
    lambda x, c: processors.no_repeat_ngram(
      x, c.settings.no_repeat_ngram, c.history.tokens, c.history.length
    ),
  ),
  'min_new_tokens': _Stage(
    lambda s: s.min_new_tokens > 0,
    lambda x, c: processors.min_new_tokens(
      x,
      c.settings.min_new_tokens,
      c.history.length - c.history.prompt_length,
      c.settings.stop_ids,
    ),
    costly=False,
  ),
  'permitted': _Stage(
    lambda s: (
      s.biased
      | (s.no_repeat_ngram > 0)
      | (s.min_new_tokens > 0)
      | (s.dry_multiplier > 0.0)
    ),
    lambda x, c: processors.permitted(x, c.settings.bias),
    costly=False,
  ),
  # On in every row of a batch that has a constraint, see `_used`.
  'constraint': _Stage(
    lambda s: jnp.ones_like(s.biased),
    lambda x, c: processors.constraint(x, c.allowed),
    costly=False,
  ),
  'temperature': _Stage(
    lambda s: (s.temperature != 0.0) & (s.temperature != 1.0),
    lambda x, c: processors.temperature(x, c.settings.temperature),
    costly=False,
  ),
}
FILTERS = {
  'top_k': _Stage(
    lambda s: s.top_k > 0,
    lambda x, c: filters.top_k(x, c.settings.top_k),
  ),
  'top_p': _Stage(
    lambda s: s.top_p_cut > 0.0,
    lambda x, c: filters.top_p(x, c.settings.top_p_cut),
  ),
  'min_p': _Stage(
    lambda s: s.min_p > 0.0,
    lambda x, c: filters.min_p(x, c.settings.min_p),
  ),
  'typical': _Stage(
    lambda s: s.typical_p < 1.0,
    lambda x, c: filters.typical(x, c.settings.typical_p),
  ),
  'epsilon': _Stage(
    lambda s: s.epsilon > 0.0,
    lambda x, c: filters.epsilon(x, c.settings.epsilon),
  ),
  'eta': _Stage(
    lambda s: s.eta > 0.0,
    lambda x, c: filters.eta(x, c.settings.eta),
  ),
  'xtc': _Stage(
    lambda s: s.xtc_probability > 0.0,
    lambda x, c: filters.xtc(
      x,
      c.settings.xtc_probability,
      c.settings.xtc_threshold,
      jax.random.fold_in(c.key, _XTC_DRAW),
    ),
  ),
}
STAGES = PROCESSORS | FILTERS


def run_stages(
  names: tuple[str, ...],
  logits: jax.Array,
  rows: RowSampling,
  history: History,
  keys: jax.Array,
  allowed: jax.Array | None = None,
) -> jax.Array:
  """Applies the stages `names` to float32[B, V], each in the rows that use it.

  Args:
    names: static; of `STAGES`, in order.
    logits: float32[B, V].
    rows: settings.
    history: the tokens of the rows so far.
    keys: typed keys [B] of the rows at this position (for XTC).
    allowed: bool[B, V], the ids that a constraint allows; None without one.
  """
  context = Context(rows, history, keys, allowed)
  names = _used(names, context)

  def stage(name, x):
    on = any_on((name,), context)

    def changed():
      moved = jax.vmap(STAGES[name].apply)(x, context)
      return jnp.where(on[:, None], moved, x)

    if not STAGES[name].costly:
      return changed()
    return lax.cond(jnp.any(on), changed, lambda: x)

  def stages(x):
    for name in names:
      x = stage(name, x)
    return x

  # One test for the whole group, so that a group nobody uses costs once.
  if not names:
    return logits
  return lax.cond(
    jnp.any(any_on(names, context)), lambda: stages(logits), lambda: logits
  )


def any_on(names: tuple[str, ...], context: Context) -> jax.Array:
  """bool[B]: which rows use any of these stages."""
  temperature = context.settings.temperature
  on = jnp.zeros(temperature.shape, bool)
  for name in _used(names, context):
    # A greedy row takes the best token; filters have nothing to add.
    able = temperature > 0.0 if name in FILTERS else True
    on |= STAGES[name].is_on(context.settings) & able
  return on


def split_order(
  order: tuple[str, ...], constrained: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Splits an order before its first filter.

  Raises:
    ValueError: a name that is unknown or comes twice, or a constraint for
      which the order has no place.
  """
  for name in order:
    if name not in STAGES:
      raise ValueError(
        f'order names {name!r}: known stages are {", ".join(STAGES)}'
      )
    if order.count(name) > 1:
      raise ValueError(f'order names {name!r} twice: once is meant')
  if constrained and 'constraint' not in order:
    raise ValueError(
      f"order={order!r} leaves out 'constraint', and the rows have one: add it "
      'before the filters'
    )
  first = [i for i, name in enumerate(order) if name in FILTERS]
  at = first[0] if first else len(order)
  return order[:at], order[at:]


def _used(names: tuple[str, ...], context: Context) -> tuple[str, ...]:
  """Without a constraint its stage is not even traced."""
  if context.allowed is not None:
    return names
  return tuple(name for name in names if name != 'constraint')
