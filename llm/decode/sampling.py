"""Draws the next token of every row: stages, noise, argmax.

`distribution` gives the log-probabilities that are left after processors and
filters (see `llm.decode.stages`), `draw` draws from them; `sample_rows` does
both and reports on the draw.

Noise is Gumbel noise by vocabulary id from the row's key and the position of
the token, so a token depends on (logits, settings, seed, position) alone.

Trace, one row with top_k = 2, V = 4:

  logits                      [2.0, 0.0, 1.0, -1.0]
  after the stages            [2.0, -inf, 1.0, -inf]
  distribution: minus 2.313   [-0.313, -inf, -1.313, -inf]
  Gumbel noise at this place  [-0.5, 3.0, 1.2, 0.1]
  sum                         [-0.813, -inf, -0.113, -inf]
  draw: its argmax            2
"""

import functools
from typing import NamedTuple

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from llm.decode.noise import gumbel
from llm.decode.rows import Constraint, History, RowSampling, allowed_ids
from llm.decode.stages import (
  DEFAULT_ORDER,
  PROCESSORS,
  Context,
  any_on,
  run_stages,
  split_order,
)


@struct.dataclass
class SampleInfo:
  """What is known of B drawn tokens; natural logarithms, float32.

  The three log-probabilities are those of the drawn token under the model, as
  trainers and graders want them; under the model after penalties, bias and
  temperature; and under what it was really drawn from, after the filters. For
  a greedy row the last is a certainty: 0.

  Attributes:
    logprob: float32[B], of the raw logits.
    logprob_processed: float32[B], after processors (temperature 0 acts as 1).
    logprob_filtered: float32[B], after filters, renormalised.
    surviving_mass: float32[B], share of the processed distribution that the
      filters left; for a greedy row the probability of its token.
    top_ids: int32[B, top_n], most likely ids of the raw logits, best first.
    top_logprobs: float32[B, top_n], their raw log-probabilities.
  """

  logprob: jax.Array
  logprob_processed: jax.Array
  logprob_filtered: jax.Array
  surviving_mass: jax.Array
  top_ids: jax.Array
  top_logprobs: jax.Array


@functools.partial(jax.jit, static_argnames='order', inline=True)
def distribution(
  logits: jax.Array,
  rows: RowSampling,
  history: History,
  constraint: Constraint | None = None,
  *,
  order: tuple[str, ...] = DEFAULT_ORDER,
) -> jax.Array:
  """The log-probabilities that the next token of each row is drawn from.

  Args:
    logits: float[B, V], of the position after `history`.
    rows: settings.
    history: the tokens of the rows so far.
    constraint: what the rows may write next; None: anything.
    order: static; names of `STAGES` in the order in which they apply. A stage
      that is left out does not act.

  Returns:
    float32[B, V], natural logarithms: -inf where a token cannot be drawn, and
    the exponentials of a row add up to 1. A greedy row has 0 at its token.

  Raises:
    ValueError: `order` names an unknown stage, or one twice, or leaves out the
      constraint.
  """
  processed = _process(logits, rows, history, constraint, order)
  hot = rows.temperature[:, None] > 0.0
  ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  best = argmax(processed.logits)[:, None]
  certain = jnp.where(ids == best, 0.0, -jnp.inf)

  def filtered():
    left, total, _ = _filter(processed)
    return jnp.where(hot, left - total[:, None], certain)

  return lax.cond(jnp.any(hot), filtered, lambda: certain)


def draw(logprobs: jax.Array, key: jax.Array, position: jax.Array) -> jax.Array:
  """Draws one token per row by the Gumbel-max trick (Gumbel, 1954).

  `draw(distribution(logits, rows, history), rows.key, history.length)` is the
  token of `sample_rows`. That function adds the same noise to logits that are
  not normalised: the two can differ only where the best two sums agree in all
  bits but the last ones of float32.

  Args:
    logprobs: float32[B, V]; a constant added to a row changes nothing.
    key: typed keys [B], `RowSampling.key`.
    position: int32[B], the place of the token in its row.

  Returns:
    int32[B]; never an id whose log-probability is -inf.
  """
  return _perturbed_argmax(logprobs, _keys_at(key, position))


# Traced once for the first token and for chunks of every length, as long as the
# shapes are the same; `inline` leaves no call in these programs.
@functools.partial(jax.jit, static_argnames=('order', 'top_n'), inline=True)
def sample_rows(
  logits: jax.Array,
  rows: RowSampling,
  history: History,
  constraint: Constraint | None = None,
  *,
  order: tuple[str, ...] = DEFAULT_ORDER,
  top_n: int = 0,
) -> tuple[jax.Array, SampleInfo]:
  """Draws one token per row, and says how likely it was.

  Args:
    logits, rows, history, constraint, order: as for `distribution`.
    top_n: static; how many alternatives to report.

  Returns:
    int32[B] and what is known of the draw.

  Raises:
    ValueError: as `distribution`.
  """
  processed = _process(logits, rows, history, constraint, order)
  raw, raw_lse = processed.raw, processed.raw_lse
  tokens, drawn = lax.cond(
    jnp.any(rows.temperature > 0.0),
    lambda: _draw_rows(processed),
    lambda: _greedy(processed),
  )
  top_logits, top_ids = lax.top_k(raw, top_n)
  logprob_filtered, mass = drawn
  return tokens, SampleInfo(
    logprob=_pick(raw, tokens) - raw_lse,
    logprob_processed=_pick(processed.logits, tokens) - processed.lse,
    logprob_filtered=logprob_filtered,
    surviving_mass=mass,
    top_ids=top_ids,
    top_logprobs=top_logits - raw_lse[:, None],
  )


class _Processed(NamedTuple):
  """Logits of B rows before and after the processors, with normalisers [B].

  `base` is what the filters are given. `logits` are those after all processors
  and no filter: they differ where a processor comes after a filter (llama.cpp's
  order has temperature last).
  """

  raw: jax.Array
  raw_lse: jax.Array
  base: jax.Array
  logits: jax.Array
  lse: jax.Array
  tail: tuple[str, ...]  # stages from the first filter on
  context: Context


def _process(logits, rows, history, constraint, order) -> _Processed:
  head, tail = split_order(order, constraint is not None)
  raw = logits.astype(jnp.float32)
  raw_lse = jax.nn.logsumexp(raw, axis=-1)
  keys = _keys_at(rows.key, history.length)
  allowed = None if constraint is None else allowed_ids(constraint)
  context = Context(rows, history, keys, allowed)
  base = run_stages(head, raw, *context)
  between = tuple(name for name in tail if name in PROCESSORS)
  processed = run_stages(between, base, *context)
  lse = lax.cond(
    jnp.any(any_on(head + between, context)),
    lambda: jax.nn.logsumexp(processed, axis=-1),
    lambda: raw_lse,
  )
  return _Processed(raw, raw_lse, base, processed, lse, tail, context)


def _filter(processed: _Processed):
  """Logits float32[B, V] after the filters, their normaliser and mass [B]."""
  lse, tail, context = processed.lse, processed.tail, processed.context
  filtered = run_stages(tail, processed.base, *context)

  def measured():
    total = jax.nn.logsumexp(filtered, axis=-1)
    left = jnp.where(filtered > -jnp.inf, processed.logits, -jnp.inf)
    kept = jax.nn.logsumexp(left, axis=-1)
    return total, jnp.minimum(jnp.exp(kept - lse), 1.0)

  total, mass = lax.cond(
    jnp.any(any_on(tail, context)), measured, lambda: (lse, jnp.ones_like(lse))
  )
  return filtered, total, mass


def _greedy(processed: _Processed):
  """Tokens int32[B], and (filtered log-probability, surviving mass)."""
  tokens = argmax(processed.logits)
  mass = jnp.exp(_pick(processed.logits, tokens) - processed.lse)
  return tokens, (jnp.zeros_like(mass), mass)


def _draw_rows(processed: _Processed):
  """As `_greedy`, for a batch in which some row has a temperature."""
  filtered, total, mass = _filter(processed)
  best, (zero, best_mass) = _greedy(processed)
  hot = processed.context.settings.temperature > 0.0
  drawn = _perturbed_argmax(filtered, processed.context.key)
  tokens = jnp.where(hot, drawn, best)
  logprob = _pick(filtered, tokens) - total
  return tokens, (
    jnp.where(hot, logprob, zero),
    jnp.where(hot, mass, best_mass),
  )


def _keys_at(key: jax.Array, position: jax.Array) -> jax.Array:
  return jax.vmap(jax.random.fold_in)(key, position)


def _perturbed_argmax(logits: jax.Array, keys: jax.Array) -> jax.Array:
  noise = jax.vmap(gumbel, (0, None))(keys, logits.shape[-1])
  return argmax(logits + noise)


def argmax(x: jax.Array) -> jax.Array:
  """First index of the largest value: float32[B, V] -> int32[B].

  A row with a NaN gives its last index; its log-probabilities are NaN. Two
  plain reductions: XLA:CPU runs them 3 to 6 times faster than `jnp.argmax`.
  """
  size = x.shape[-1]
  best = jnp.max(x, axis=-1, keepdims=True)
  ids = jnp.where(x == best, jnp.arange(size, dtype=jnp.int32), size - 1)
  return jnp.min(ids, axis=-1)


def _pick(values, tokens):
  return jnp.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]
