"""Peak host memory while a checkpoint of several files is read or written."""

import os

import pytest

_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from llm.checkpoints.hf.load import load_params
from llm.checkpoints.hf.names import leaves
from llm.checkpoints.hf.save import save_hf
from llm.models.config import ModelConfig

config = ModelConfig(
  vocab_size=8192, embed_dim=1024, hidden_dim=2048, num_layers=4,
  num_heads=16, num_kv_heads=4, head_dim=64, max_length=64)
folder = {folder!r}


def status(key):
  for line in open('/proc/self/status'):
    if line.startswith(key):
      return int(line.split()[1]) * 1024


def reset_peak():
  open('/proc/self/clear_refs', 'w').write('5')


def make():
  params = {{}}
  for leaf in leaves(config):
    node = params
    for key in leaf.path[:-1]:
      node = node.setdefault(key, {{}})
    node[leaf.path[-1]] = np.ones(leaf.shape, np.float32)
  return params


jax.block_until_ready(jnp.zeros(8) + 1)  # the runtime is up
{body}
"""

_SAVE = """
params = make()
total = sum(x.nbytes for x in jax.tree.leaves(params))
before = status('VmRSS')
reset_peak()
save_hf(folder, config, params, dtype={dtype!r}, max_shard_bytes=40_000_000)
print(status('VmHWM') - before, total, max(
  x.nbytes for x in jax.tree.leaves(params)))
"""

_LOAD = """
before = status('VmRSS')
reset_peak()
params = load_params(folder, config, dtype={dtype!r})
peak = status('VmHWM')
sizes = [x.nbytes for x in jax.tree.leaves(params)]
print(peak - before - sum(sizes), sum(sizes), max(sizes))
"""


@pytest.mark.skipif(
  not os.path.exists('/proc/self/clear_refs'), reason='needs Linux'
)
@pytest.mark.parametrize('wanted', ['float32', 'bfloat16'])
def test_peak_is_the_parameters_and_little_more(wanted, tmp_path, run_python):
  folder = str(tmp_path)

  def run(body, dtype):
    body = body.format(dtype=dtype)
    out = run_python(_PROGRAM.format(folder=folder, body=body))
    return map(int, out.split())

  extra, total, largest = run(_SAVE, 'float32')
  assert total > 4 * largest
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 2
  assert extra < 1.3 * largest
  extra, total, largest = run(_LOAD, wanted)
  assert total > 4 * largest
  assert extra < 1.3 * largest
