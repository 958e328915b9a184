"""Draws the next token of every row: processors, filters, noise, argmax.

The order of the stages is data: `DEFAULT_ORDER` is that of `generate` in
`transformers` 5, with the penalties of other systems beside their kin and XTC
last. Settings are traced and per row. A stage, and each group of stages, is
skipped by a `lax.cond` when no row of the batch asks for it; where it runs,
the rows that did not ask keep their logits bit for bit. So a row's token does
not depend on its neighbours, and asking for nothing costs nothing.

Noise is Gumbel noise by vocabulary id from the row's key and the position of
the token, so a token depends on (logits, settings, seed, position) alone.
"""

from collections.abc import Callable
import dataclasses
import functools

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from llm.decode import filters
from llm.decode import logits as processors
from llm.decode.noise import gumbel
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


@dataclasses.dataclass(frozen=True)
class _Stage:
  """`asked(rows) -> bool[B]` and a function of one row's logits.

  A costly stage has a `lax.cond` of its own; the others are elementwise and
  run with their group, which compiles faster than a branch each.
  """

  asked: Callable[[RowSampling], jax.Array]
  apply: Callable[[jax.Array, RowSampling, History, jax.Array], jax.Array]
  costly: bool = True


PROCESSORS = {
  'bias': _Stage(
    lambda r: r.biased,
    lambda x, r, h, key: processors.bias(x, r.bias),
    costly=False,
  ),
  'repetition_penalty': _Stage(
    lambda r: r.repetition_penalty != 1.0,
    lambda x, r, h, key: processors.repetition_penalty(
      x, r.repetition_penalty, h.prompt_seen | (h.output_counts > 0)
    ),
    costly=False,
  ),
  'presence_penalty': _Stage(
    lambda r: r.presence_penalty != 0.0,
    lambda x, r, h, key: processors.presence_penalty(
      x, r.presence_penalty, h.output_counts
    ),
    costly=False,
  ),
  'frequency_penalty': _Stage(
    lambda r: r.frequency_penalty != 0.0,
    lambda x, r, h, key: processors.frequency_penalty(
      x, r.frequency_penalty, h.output_counts
    ),
    costly=False,
  ),
  'dry': _Stage(
    lambda r: r.dry_multiplier > 0.0,
    lambda x, r, h, key: processors.dry(
      x,
      r.dry_multiplier,
      r.dry_base,
      r.dry_allowed_length,
      r.dry_breakers,
      h.tokens,
      h.length,
    ),
  ),
  'no_repeat_ngram': _Stage(
    lambda r: r.no_repeat_ngram > 0,
    lambda x, r, h, key: processors.no_repeat_ngram(
      x, r.no_repeat_ngram, h.tokens, h.length
    ),
  ),
  'min_new_tokens': _Stage(
    lambda r: r.min_new_tokens > 0,
    lambda x, r, h, key: processors.min_new_tokens(
      x, r.min_new_tokens, h.length - h.prompt_length, r.stop_ids
    ),
    costly=False,
  ),
  'permitted': _Stage(
    lambda r: (
      r.biased
      | (r.no_repeat_ngram > 0)
      | (r.min_new_tokens > 0)
      | (r.dry_multiplier > 0.0)
    ),
    lambda x, r, h, key: processors.permitted(x, r.bias),
    costly=False,
  ),
  'temperature': _Stage(
    lambda r: (r.temperature != 0.0) & (r.temperature != 1.0),
    lambda x, r, h, key: processors.temperature(x, r.temperature),
    costly=False,
  ),
}
FILTERS = {
  'top_k': _Stage(
    lambda r: r.top_k > 0,
    lambda x, r, h, key: filters.top_k(x, r.top_k),
  ),
  'top_p': _Stage(
    lambda r: r.top_p_cut > 0.0,
    lambda x, r, h, key: filters.top_p(x, r.top_p_cut),
  ),
  'min_p': _Stage(
    lambda r: r.min_p > 0.0,
    lambda x, r, h, key: filters.min_p(x, r.min_p),
  ),
  'typical': _Stage(
    lambda r: r.typical_p < 1.0,
    lambda x, r, h, key: filters.typical(x, r.typical_p),
  ),
  'epsilon': _Stage(
    lambda r: r.epsilon > 0.0,
    lambda x, r, h, key: filters.epsilon(x, r.epsilon),
  ),
  'eta': _Stage(
    lambda r: r.eta > 0.0,
    lambda x, r, h, key: filters.eta(x, r.eta),
  ),
  'xtc': _Stage(
    lambda r: r.xtc_probability > 0.0,
    lambda x, r, h, key: filters.xtc(
      x, r.xtc_probability, r.xtc_threshold, jax.random.fold_in(key, _XTC_DRAW)
    ),
  ),
}
STAGES = PROCESSORS | FILTERS


# Traced once for the first token and for chunks of every length, as long as the
# shapes are the same; `inline` leaves no call in these programs.
@functools.partial(jax.jit, static_argnames=('order', 'top_n'), inline=True)
def sample_rows(
  logits: jax.Array,
  rows: RowSampling,
  history: History,
  *,
  order: tuple[str, ...] = DEFAULT_ORDER,
  top_n: int = 0,
) -> tuple[jax.Array, SampleInfo]:
  """Draws one token per row.

  Args:
    logits: float32[B, V], of the position after `history`.
    rows: settings.
    history: what the rows have said.
    order: static; names of `STAGES` in the order in which they apply. A stage
      that is left out does not act.
    top_n: static; how many alternatives to report.

  Returns:
    int32[B] and what is known of the draw.

  Raises:
    ValueError: `order` names an unknown stage, or one twice.
  """
  head, tail = _split(order)
  raw = logits.astype(jnp.float32)
  raw_lse = jax.nn.logsumexp(raw, axis=-1)
  keys = jax.vmap(jax.random.fold_in)(rows.key, history.length)
  context = rows, history, keys
  base = run_stages(head, raw, *context)
  # With a processor among the filters (llama.cpp's order has temperature
  # last), "processed" is what all processors make of it without the filters.
  between = tuple(name for name in tail if name in PROCESSORS)
  processed = run_stages(between, base, *context)
  lse = lax.cond(
    jnp.any(_asked(head + between, rows)),
    lambda: jax.nn.logsumexp(processed, axis=-1),
    lambda: raw_lse,
  )
  tokens, drawn = lax.cond(
    jnp.any(rows.temperature > 0.0),
    lambda: _draw(tail, base, processed, lse, *context),
    lambda: _greedy(processed, lse),
  )
  top_logits, top_ids = lax.top_k(raw, top_n)
  logprob_filtered, mass = drawn
  return tokens, SampleInfo(
    logprob=_pick(raw, tokens) - raw_lse,
    logprob_processed=_pick(processed, tokens) - lse,
    logprob_filtered=logprob_filtered,
    surviving_mass=mass,
    top_ids=top_ids,
    top_logprobs=top_logits - raw_lse[:, None],
  )


def _greedy(processed, lse):
  """Tokens int32[B], and (filtered log-probability, surviving mass)."""
  tokens = argmax(processed)
  mass = jnp.exp(_pick(processed, tokens) - lse)
  return tokens, (jnp.zeros_like(mass), mass)


def _draw(tail, base, processed, lse, rows, history, keys):
  """As `_greedy`, for a batch in which some row has a temperature."""
  filtered = run_stages(tail, base, rows, history, keys)
  noise = jax.vmap(gumbel, (0, None))(keys, base.shape[-1])
  best, (zero, best_mass) = _greedy(processed, lse)
  hot = rows.temperature > 0.0
  tokens = jnp.where(hot, argmax(filtered + noise), best)

  def measured():
    total = jax.nn.logsumexp(filtered, axis=-1)
    left = jnp.where(filtered > -jnp.inf, processed, -jnp.inf)
    kept = jax.nn.logsumexp(left, axis=-1)
    return total, jnp.minimum(jnp.exp(kept - lse), 1.0)

  total, mass = lax.cond(
    jnp.any(_asked(tail, rows)), measured, lambda: (lse, jnp.ones_like(lse))
  )
  logprob = _pick(filtered, tokens) - total
  return tokens, (
    jnp.where(hot, logprob, zero),
    jnp.where(hot, mass, best_mass),
  )


def run_stages(names, logits, rows, history, keys):
  """Applies the stages `names` to float32[B, V], each where a row asks for it.

  Args:
    names: static; of `STAGES`, in order.
    logits: float32[B, V].
    rows: settings.
    history: what the rows have said.
    keys: typed keys [B] of the rows at this position (for XTC).
  """

  def stage(name, x):
    asked = _asked((name,), rows)

    def changed():
      moved = jax.vmap(STAGES[name].apply)(x, rows, history, keys)
      return jnp.where(asked[:, None], moved, x)

    if not STAGES[name].costly:
      return changed()
    return lax.cond(jnp.any(asked), changed, lambda: x)

  def stages(x):
    for name in names:
      x = stage(name, x)
    return x

  # One test for the whole group, so that a group nobody asks for costs once.
  if not names:
    return logits
  return lax.cond(
    jnp.any(_asked(names, rows)), lambda: stages(logits), lambda: logits
  )


def _asked(names, rows):
  """bool[B]: which rows ask for any of these stages."""
  asked = jnp.zeros(rows.temperature.shape, bool)
  for name in names:
    # A greedy row takes the best token; filters have nothing to add.
    able = rows.temperature > 0.0 if name in FILTERS else True
    asked |= STAGES[name].asked(rows) & able
  return asked


def _split(order):
  """Splits an order before its first filter."""
  for name in order:
    if name not in STAGES:
      raise ValueError(
        f'order names {name!r}: known stages are {", ".join(STAGES)}'
      )
    if order.count(name) > 1:
      raise ValueError(f'order names {name!r} twice: once is meant')
  first = [i for i, name in enumerate(order) if name in FILTERS]
  at = first[0] if first else len(order)
  return order[:at], order[at:]


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
