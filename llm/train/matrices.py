"""Parameters as the matrices that they hold.

Muon and Adafactor treat a matrix as a matrix. Our kernels fuse several (query,
key and value; gate and up; experts; the layers of a scan) and split their axes
into heads. Here they are split again, so that an update does not depend on how
the model stores its weights.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

# Last parts of the paths. DoRA's magnitude is a vector, as norm scales are.
_NAMES = ('kernel', 'embedding', 'lora_a', 'lora_b')


def path_name(path: Any) -> str:
  """A key path as text: `layers_0/attn/qkv/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def is_matrix(path: str) -> bool:
  """Whether the parameter holds matrices, going by its name."""
  return path.split('/')[-1] in _NAMES


def split(path: str, x: jax.Array) -> tuple[jax.Array, ...]:
  """The blocks of one parameter, each with a leading axis of equal blocks.

  A kernel `qkv` [L, K, G+2, H, D] gives queries [L, K·G·H, D], keys and values
  [L, K·H, D]; `o` [L, D, N, H] gives [L, D, N·H]; any other matrix has its
  last two axes, with all axes before them as one: gate_up [L, 2, F, D] gives
  [2·L, F, D]. L is there where the path begins with `layers/` (a scan); else
  it is 1. A vector (norm scale, bias) gives [L, size].

  Args:
    path: as `path_name` writes it.
    x: the parameter, or an array of its shape.
  """
  if not is_matrix(path):
    return (x.reshape(_layers(path, x), -1),)
  if _ends(path, 'qkv'):
    *_, kv_heads, group, head, embed = x.shape
    x = x.reshape(-1, kv_heads, group, head, embed)
    parts = x[:, :, :-2], x[:, :, -2], x[:, :, -1]
    return tuple(part.reshape(x.shape[0], -1, embed) for part in parts)
  if _ends(path, 'o'):
    return (x.reshape(-1, x.shape[-3], x.shape[-2] * x.shape[-1]),)
  if x.ndim < 2:
    raise ValueError(f'{path} has shape {x.shape}: a matrix has two axes')
  return (x.reshape(-1, *x.shape[-2:]),)


def join(
  path: str, parts: tuple[jax.Array, ...], shape: tuple[int, ...]
) -> jax.Array:
  """The parameter of `shape` from its blocks: the inverse of `split`."""
  if len(parts) == 1:
    return parts[0].reshape(shape)
  *lead, kv_heads, group, head, embed = shape
  rows = (math.prod(lead), kv_heads, -1, head, embed)
  parts = [part.reshape(rows) for part in parts]
  return jnp.concatenate(parts, axis=2).reshape(shape)


def _ends(path, name):
  return f'/{path}'.endswith(f'/attn/{name}/kernel')


def _layers(path, x):
  return x.shape[0] if path.startswith('layers/') else 1
