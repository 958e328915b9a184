"""Gumbel noise by vocabulary id."""

import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def gumbel(key: jax.Array, size: int) -> jax.Array:
  """Standard Gumbel noise float32[size], one hash of (key, id) per id.

  `jax.random.gumbel` in its default mode cannot exceed 16 and so under-samples
  probabilities below 1e-7. Here 64 random bits an id give an exponential
  variate that is fine at both ends (down to 2**-65), and id v gets the same
  noise whatever `size` and whatever the process's random flags.

  Args:
    key: typed threefry key.
    size: static; V.
  """
  ids = jnp.arange(size, dtype=jnp.uint32)
  high, low = threefry(jax.random.key_data(key), ids, jnp.zeros_like(ids))
  # u = (high, low) / 2**64 is uniform; use whichever of u, 1 - u is below 1/2
  # for full relative precision: -log(1 - u) is exponential either way.
  upper = high >= jnp.uint32(2**31)
  high = jnp.where(upper, ~high, high).astype(jnp.float32)
  low = jnp.where(upper, ~low, low).astype(jnp.float32)
  part = high * 2.0**-32 + (low + 0.5) * 2.0**-64
  exponential = jnp.where(upper, -jnp.log(part), -jnp.log1p(-part))
  return -jnp.log(exponential)


def threefry(
  key: jax.Array, high: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random ...").

  The generator of `jax.random`, written out so that XLA:CPU fuses the rounds
  with what follows: half the time of the library's rolled loop.

  Args:
    key: uint32[2].
    high, low: uint32[size], the two words of the counter.

  Returns:
    Two arrays uint32[size].
  """
  schedule = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
  high, low = high + schedule[0], low + schedule[1]
  for block in range(5):
    for bits in _ROTATIONS[block % 2]:
      high = high + low
      low = ((low << bits) | (low >> (32 - bits))) ^ high
    high = high + schedule[(block + 1) % 3]
    low = low + schedule[(block + 2) % 3] + jnp.uint32(block + 1)
  return high, low
