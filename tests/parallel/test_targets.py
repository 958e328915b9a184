"""Names of targets, and what is said where one cannot be had.

tests/aot compiles for them, where their compilers are installed.
"""

import pytest

from llm.errors import UserError
from llm.parallel import targets


@pytest.mark.parametrize(
  'target, message',
  [
    ('h10', "'h10': known are a100, h100, h200, b200, v5e, v6e, v5p, tpu7x,"),
    ('v5e:3', 'v5e comes in 1, 4, 8, 16, 32, 64, 128, 256 devices'),
    # A chip of it is two devices, and the smallest slice is four chips.
    ('tpu7x:4', 'tpu7x comes in 1, 8, 16,'),
    ('h100:0', 'after the colon comes a number of devices, such as h100:8'),
    ('h100:', 'after the colon comes a number of devices, such as h100:8'),
    ('h100:x', 'after the colon comes a number of devices, such as h100:8'),
    ('h100:12', 'a host has 8 devices; use up to that, or a multiple of it'),
  ],
)
def test_an_unknown_target_is_refused(target, message):
  with pytest.raises(UserError) as error:
    targets.target_devices(target)
  assert message in str(error.value)


@pytest.mark.parametrize('target', ['v5e:4', 'v5e:2x2', 'h100'])
def test_a_missing_compiler_is_named(target, monkeypatch):
  packages = ['libtpu', 'jax-cuda12-plugin']
  monkeypatch.setattr(targets, 'missing_compilers', lambda: packages)
  with pytest.raises(UserError) as error:
    targets.target_devices(target)
  name = packages[target == 'h100']
  assert f'its compiler is not installed ({name})' in str(error.value)
  assert "pip install 'llm-jax[aot]'" in str(error.value)


@pytest.mark.parametrize('target', ['v5e:4', 'h100'])
def test_an_environment_that_was_not_set_is_named(target, monkeypatch):
  monkeypatch.setattr(targets, 'missing_compilers', list)
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY', raising=False)
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  with pytest.raises(UserError, match='before JAX is imported'):
    targets.target_devices(target)


def test_the_environment_keeps_what_was_set(tmp_path, monkeypatch):
  monkeypatch.setattr(targets, '_nvcc', lambda: tmp_path)
  added = targets.environment({'XLA_FLAGS': '--xla_a=1', 'PATH': '/usr/bin'})
  assert added['XLA_FLAGS'].split() == [
    '--xla_a=1',
    f'--xla_gpu_cuda_data_dir={tmp_path}',
    '--xla_gpu_autotune_level=0',
  ]
  assert added['PATH'] == f'{tmp_path}/bin:/usr/bin'
  assert added['JAX_PLATFORMS'] == 'cpu'
