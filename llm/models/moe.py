"""Mixture of experts without capacity: no token is ever dropped.

Each token's top experts are selected by a softmax router (Mixtral 2401.04088,
Qwen3-MoE 2505.09388). The (token, expert) pairs are sorted by expert and cut
into blocks that each belong to one expert; a scan multiplies block by block.
So the arithmetic is that of the selected experts alone, plus at most one
part-filled block per expert.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from llm.models.config import ModelConfig
from llm.models.layers import ACTIVATIONS
from llm.models.placement import on_own_rows
from llm.models.weights import linear, parameter, sliced

_MAX_BLOCK = 128


def route(
  logits: jax.Array, experts_per_token: int, normalise: bool
) -> tuple[jax.Array, jax.Array]:
  """(weights float32[..., k], experts int32[..., k]) of the top-k experts.

  logits: float[..., E]. Probabilities are a softmax over all experts in
  float32; `normalise` rescales the selected ones to sum to 1.
  """
  probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
  weights, experts = lax.top_k(probabilities, experts_per_token)
  if normalise:
    weights = weights / weights.sum(axis=-1, keepdims=True)
  return weights, experts


def block_plan(experts: jax.Array, num_experts: int, block: int):
  """Sorts pairs by expert into blocks of one expert each.

  Args:
    experts: int32[P], the expert of each (token, choice) pair.
    num_experts: E.
    block: pairs per block.

  Returns:
    (slot int32[P]: where each pair goes in the padded order of
    M = ceil(P / block) + E blocks; owner int32[M]: each block's expert).
    Trace with block=2, E=3, experts 2 0 2 2: counts 1 0 3, blocks per expert
    1 0 2, so slot = 2 0 3 4 and owner starts 0 2 2.
  """
  pairs = experts.shape[0]
  num_blocks = -(-pairs // block) + num_experts
  counts = jnp.zeros((num_experts,), jnp.int32).at[experts].add(1)
  blocks = -(-counts // block)
  first_block = jnp.cumsum(blocks) - blocks
  order = jnp.argsort(experts, stable=True)
  first_pair = jnp.cumsum(counts) - counts
  rank = jnp.arange(pairs) - first_pair[experts[order]]
  slot = jnp.zeros((pairs,), jnp.int32)
  slot = slot.at[order].set(first_block[experts[order]] * block + rank)
  ends = jnp.cumsum(blocks)
  # Not jnp.searchsorted: JAX 0.10 fails on it inside of shard_map.
  owner = jnp.sum(ends <= jnp.arange(num_blocks)[:, None], axis=1)
  return slot, jnp.minimum(owner, num_experts - 1)


class MoE(nn.Module):
  """Sum over a token's experts of weight * down(act(gate(x)) * up(x)).

  Parameters: router/kernel [E, D], gate_up/kernel [E, 2, F, D],
  down/kernel [E, D, F].
  """

  config: ModelConfig
  out_init_scale: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x: float[B, T, D] -> float[B, T, D]."""
    config = self.config
    experts, width, embed = (
      config.num_experts,
      config.expert_dim,
      config.embed_dim,
    )
    router = _Kernel((experts, embed), name='router')()
    gate_up = _Kernel((experts, 2, width, embed), name='gate_up')()
    down = _Kernel((experts, embed, width), self.out_init_scale, name='down')()
    mix = functools.partial(_mix, config, self.dtype)
    return on_own_rows(mix, x, ((router, None), (gate_up, 2), (down, 2)))


def _mix(config, dtype, x, router, gate_up, down):
  """float[B, T, D] -> float[B, T, D]; see `MoE`."""
  experts, embed = router.shape
  tokens = x.reshape(-1, embed).astype(dtype)
  weights, selected = route(
    linear(tokens, router),
    config.experts_per_token,
    config.norm_topk_prob,
  )
  pairs = selected.size
  block = min(_MAX_BLOCK, max(1, pairs // experts))
  slot, owner = block_plan(selected.reshape(-1), experts, block)
  source = jnp.repeat(
    tokens, config.experts_per_token, axis=0, total_repeat_length=pairs
  )
  padded = jnp.zeros((owner.shape[0] * block, embed), dtype)
  blocks = padded.at[slot].set(source).reshape(-1, block, embed)
  used = slot.max() // block + 1
  activation = ACTIVATIONS[config.activation]

  def one(_, item):
    index, expert, rows = item

    def product(rows):
      up = linear(rows, sliced(gate_up, expert))
      hidden = activation(up[:, 0]) * up[:, 1]
      return linear(hidden, sliced(down, expert))

    # Blocks beyond the last used one belong to nobody.
    return None, lax.cond(index < used, product, jnp.zeros_like, rows)

  index = jnp.arange(owner.shape[0])
  _, out = lax.scan(one, None, (index, owner, blocks))
  out = out.reshape(-1, embed)[slot]
  out = out.reshape(*selected.shape, embed)
  out = jnp.sum(out * weights[..., None].astype(dtype), axis=-2)
  return out.reshape(x.shape)


class _Kernel(nn.Module):
  """Holds one weight under `kernel`."""

  shape: tuple[int, ...]
  init_scale: float = 0.02

  @nn.compact
  def __call__(self) -> Any:
    return parameter(self, 'kernel', self.init_scale, self.shape)
