"""A loss must say each broadcast: `[B] * [B, T]` is a bug, not a sum."""

import jax
import pytest


@pytest.fixture(autouse=True)
def no_rank_promotion():
  with jax.numpy_rank_promotion('raise'):
    yield
