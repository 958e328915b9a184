"""The ladders of array sizes, by hand."""

import pytest

from llm.buckets import bucket, fine_bucket


@pytest.mark.parametrize(
  'length,want', [(1, 16), (16, 16), (17, 32), (100, 128)]
)
def test_bucket(length, want):
  assert bucket(length) == want


def test_a_ladder_that_ends():
  lengths = [bucket(n, maximum=100) for n in (1, 16, 17, 32, 64, 65, 100)]
  assert lengths == [16, 16, 32, 32, 64, 100, 100]
  assert bucket(3, maximum=10) == 10


@pytest.mark.parametrize(
  'length,want', [(1, 64), (65, 96), (97, 128), (129, 192), (200, 256)]
)
def test_fine_bucket(length, want):
  assert fine_bucket(length) == want
