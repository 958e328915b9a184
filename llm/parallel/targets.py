"""Devices that are not here, for the compilers that are.

The compilers of TPUs and NVIDIA GPUs run on a machine that has neither: give
them the devices of a target, and they say whether a program compiles, what
memory it takes, which buffers it shares and what it copies. Nothing runs, so
they say nothing about time. docs/compilers.md has an example.

A target is a kind and a number of devices: `h100`, `h100:8`, `v5e:4`. Without
a number it is one device. Environment variables must be set before JAX is
imported, so this module imports it late:

  os.environ.update(targets.environment())
  import jax
  devices = targets.target_devices('v5e:4')
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
from typing import Any

from llm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gpu:
  """What XLA's cost models read about an NVIDIA GPU.

  The values are those that the driver reports, as openxla/xla publishes them
  (xla/backends/gpu/target_config/specs). Clocks are in GHz, memory in bytes,
  bandwidth in bytes per second.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  fpus_per_core: int
  clock: float
  bandwidth: int
  memory: int
  l2_cache: int
  shared_memory: int  # of a core; a block can have 1 KiB less
  features: str = 'ACCELERATED_FEATURES'  # sm_90a and its successors


GPUS = {
  'a100': Gpu(
    name='NVIDIA A100-SXM4-80GB',
    capability=(8, 0),
    cores=108,
    fpus_per_core=64,
    clock=1.41,
    bandwidth=2_039_040_000_000,
    memory=85_100_068_864,
    l2_cache=41_943_040,
    shared_memory=167_936,
    features='NONE',
  ),
  'h100': Gpu(
    name='NVIDIA H100 80GB HBM3',
    capability=(9, 0),
    cores=132,
    fpus_per_core=128,
    clock=1.98,
    bandwidth=3_352_320_000_000,
    memory=84_942_979_072,
    l2_cache=52_428_800,
    shared_memory=233_472,
  ),
  'h200': Gpu(
    name='NVIDIA H200 141GB HBM3e',
    capability=(9, 0),
    cores=132,
    fpus_per_core=128,
    clock=1.98,
    bandwidth=4_800_000_000_000,
    memory=151_397_597_184,
    l2_cache=52_428_800,
    shared_memory=233_472,
  ),
  'b200': Gpu(
    name='NVIDIA B200',
    capability=(10, 0),
    cores=148,
    fpus_per_core=128,
    clock=1.965,
    bandwidth=7_672_320_000_000,
    memory=191_514_411_008,
    l2_cache=132_644_864,
    shared_memory=233_472,
  ),
}
_GPUS_OF_A_HOST = 8
_CUDA, _CUDNN = (12, 8), (9, 10)  # the versions that programs are compiled for

# Devices -> the topology of a slice. v5e and v6e are a plane of chips; v5p and
# tpu7x are a block of them, and a chip of tpu7x is two devices.
_PLANE = {
  4: '2x2',
  8: '2x4',
  16: '4x4',
  32: '4x8',
  64: '8x8',
  128: '8x16',
  256: '16x16',
}
_BLOCK = {
  4: '2x2x1',
  8: '2x2x2',
  16: '2x2x4',
  32: '2x4x4',
  64: '4x4x4',
  128: '4x4x8',
  256: '4x8x8',
}
TPUS = {
  'v5e': _PLANE,
  'v6e': _PLANE,
  'v5p': _BLOCK,
  'tpu7x': {2 * chips: topology for chips, topology in _BLOCK.items()},
}

_INSTALL = "pip install 'llm-jax[aot]'"


def environment(base: Any = None) -> dict[str, str]:
  """The variables that the compilers need, to be set before JAX is imported.

  Args:
    base: the present environment; default: `os.environ`. Its XLA_FLAGS and
      PATH are kept and added to.
  """
  base = os.environ if base is None else base
  added = {
    'JAX_PLATFORMS': 'cpu',
    # Without these libtpu looks for the machine's own TPU and waits for it.
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # processes that compile side by side
  }
  nvcc = _nvcc()
  if nvcc is not None:
    flags = (
      base.get('XLA_FLAGS', ''),
      f'--xla_gpu_cuda_data_dir={nvcc}',
      '--xla_gpu_autotune_level=0',  # it would time kernels on the device
    )
    added['XLA_FLAGS'] = ' '.join(flags).strip()
    added['PATH'] = os.pathsep.join([str(nvcc / 'bin'), base.get('PATH', '')])
  return added


def missing_compilers() -> list[str]:
  """The packages of the extra `aot` that are not installed."""
  found = {
    'libtpu': _has('libtpu'),
    'jax-cuda12-plugin': _has('jax_cuda12_plugin'),
    'jax-cuda12-pjrt': _has('jax_plugins.xla_cuda12'),
    'nvidia-cuda-nvcc-cu12': _nvcc() is not None,
  }
  return [name for name, there in found.items() if not there]


def target_devices(target: str) -> list[Any]:
  """The devices of a target: to compile for, not to run on.

  Shardings over them on `jax.ShapeDtypeStruct`s make `jit(f).lower(…)` take
  the target's platform: `SingleDeviceSharding(devices[0])`, or a
  `NamedSharding` of `make_mesh(config.mesh, devices)`. For GPUs JAX is told,
  for the rest of the process, that there is a cuDNN.

  Args:
    target: KIND or KIND:COUNT, such as `h100` or `v5e:4`.

  Raises:
    UserError: the kind or the count is unknown, the compiler is not installed,
      or the environment was not set.
  """
  kind, colon, count = target.partition(':')
  if kind not in GPUS and kind not in TPUS:
    raise UserError(
      f'target {target!r}: known are {", ".join([*GPUS, *TPUS])}, each alone '
      'or with a number of devices, such as v5e:4'
    )
  if colon and not (count.isdecimal() and int(count) > 0):
    raise UserError(
      f'target {target!r}: after the colon comes a number of devices, such as '
      f'{kind}:8'
    )
  size = int(count or 1)
  return (
    _gpus(target, kind, size) if kind in GPUS else _tpus(target, kind, size)
  )


def _tpus(target, kind, size):
  slices = TPUS[kind]
  if size != 1 and size not in slices:
    known = ', '.join(str(n) for n in [1, *slices])
    raise UserError(f'target {target!r}: {kind} comes in {known} devices')
  _check_installed(target, ('libtpu',))
  _check_environment(target, 'TPU_SKIP_MDS_QUERY', '1')
  from jax.experimental import topologies

  # A single device is one of the smallest slice.
  topology = slices.get(size, next(iter(slices.values())))
  description = topologies.get_topology_desc(
    platform='tpu', topology_name=f'{kind}:{topology}'
  )
  return list(description.devices)[:size]


def _gpus(target, kind, size):
  hosts = math.ceil(size / _GPUS_OF_A_HOST)
  if hosts > 1 and size % _GPUS_OF_A_HOST:
    raise UserError(
      f'target {target!r}: a host has {_GPUS_OF_A_HOST} devices; use up to '
      'that, or a multiple of it'
    )
  _check_installed(
    target, ('jax-cuda12-plugin', 'jax-cuda12-pjrt', 'nvidia-cuda-nvcc-cu12')
  )
  _check_environment(target, 'XLA_FLAGS', '--xla_gpu_cuda_data_dir=')
  import jax
  from jax._src.cudnn import fused_attention_stablehlo as cudnn
  from jax.experimental import topologies

  jax.devices()  # the plugins of all platforms are found on the way
  # JAX loads cuDNN to ask for its version before it traces cuDNN's attention.
  # With this answer a program is the one that the device would run.
  cudnn.check_cudnn_version = lambda: _CUDNN[0] * 10_000 + _CUDNN[1] * 100
  description = topologies.get_topology_desc(
    platform='cuda',
    topology_name='',
    topology=f'1x{hosts}x{size // hosts}',
    target_config=gpu_config(GPUS[kind]),
  )
  return list(description.devices)


def gpu_config(gpu: Gpu) -> str:
  """XLA's GpuTargetConfigProto of a GPU, in text form."""
  major, minor = gpu.capability
  (cuda, cuda_minor), (cudnn, cudnn_minor) = _CUDA, _CUDNN
  return f"""
    platform_name: "CUDA"
    device_description_str: "{gpu.name}"
    runtime_version {{ major: {cuda} minor: {cuda_minor} }}
    dnn_version_info {{ major: {cudnn} minor: {cudnn_minor} }}
    gpu_device_info {{
      cuda_compute_capability {{
        major: {major} minor: {minor} feature_extension: {gpu.features}
      }}
      core_count: {gpu.cores}
      fpus_per_core: {gpu.fpus_per_core}
      clock_rate_ghz: {gpu.clock}
      memory_bandwidth: {gpu.bandwidth}
      device_memory_size: {gpu.memory}
      l2_cache_size: {gpu.l2_cache}
      shared_memory_per_core: {gpu.shared_memory}
      shared_memory_per_block_optin: {gpu.shared_memory - 1024}
      shared_memory_per_block: 49152
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: 2048
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      thread_dim_limit_x: 1024
      thread_dim_limit_y: 1024
      thread_dim_limit_z: 64
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
    }}
  """


def _check_installed(target, packages) -> None:
  missing = [name for name in missing_compilers() if name in packages]
  if missing:
    raise UserError(
      f'target {target!r}: its compiler is not installed ({", ".join(missing)}'
      f'): {_INSTALL}'
    )


def _check_environment(target, variable, value) -> None:
  if value not in os.environ.get(variable, ''):
    raise UserError(
      f'target {target!r}: {variable} is not set for its compiler; before JAX '
      'is imported, call os.environ.update(targets.environment())'
    )


def _has(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # its parent is missing
    return False


def _nvcc() -> pathlib.Path | None:
  """The folder of NVIDIA's assembler and device library."""
  spec = importlib.util.find_spec('nvidia')
  for folder in spec.submodule_search_locations or () if spec else ():
    path = pathlib.Path(folder) / 'cuda_nvcc'
    if path.is_dir():
      return path
  return None
