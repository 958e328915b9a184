"""A packed weight as small as the protocol allows: int8 and a scale a row."""

from flax import struct
import jax
import jax.numpy as jnp

from llm.models.weights import dense, is_packed


@struct.dataclass
class Int8Rows:
  """See `llm.models.weights`.

  Attributes:
    values: int8[*F, *I].
    scale: float32[*F].
  """

  values: jax.Array
  scale: jax.Array

  @property
  def shape(self):
    return self.values.shape

  def multiply(self, x, dtype):
    values = self.values.reshape(*self.scale.shape, -1).astype(jnp.float32)
    y = jnp.tensordot(x.astype(jnp.float32), values, axes=(-1, -1))
    return (y * self.scale).astype(dtype)

  def rows(self, ids, dtype):
    values = self.values.reshape(self.scale.size, -1)[ids].astype(jnp.float32)
    return (values * self.scale.reshape(-1)[ids][..., None]).astype(dtype)


def pack(weight: jax.Array, inputs: int = 1) -> Int8Rows:
  """Packs a float array whose last `inputs` axes are summed over."""
  axes = tuple(range(-inputs, 0))
  scale = jnp.abs(weight).max(axis=axes) / 127
  spread = jnp.expand_dims(scale, axes)
  return Int8Rows(jnp.round(weight / spread).astype(jnp.int8), scale)


def pack_all(params):
  """Every linear map, the token table and the head of a tree of parameters."""

  def one(path, leaf):
    names = [entry.key for entry in path]
    if names[-1] not in ('kernel', 'embedding'):
      return leaf
    return pack(leaf, inputs=2 if names[-2] == 'o' else 1)

  return jax.tree_util.tree_map_with_path(one, params)


def unpack_all(params):
  """The same parameters as float arrays."""
  return jax.tree.map(
    lambda leaf: dense(leaf, jnp.float32) if is_packed(leaf) else leaf,
    params,
    is_leaf=is_packed,
  )
