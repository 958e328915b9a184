"""Compiles programs for targets and prints what the compilers say of them.

  PYTHONPATH=. python tests/aot/compile.py --target=v5e --shape=1b \
    --program=decode --text=OUT.txt

One JSON object a program, on a line of its own. All programs of a run share
one process: the compilers' start and the imports are paid once.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import time

from llm.parallel import targets


def report(program, shape, target):
  """Compiles one program; (what is known of it, its text)."""
  import hlo
  import jax
  import programs

  began = time.process_time()
  devices = targets.target_devices(target)
  lowered = programs.lower(program, shape, devices)
  traced = time.process_time()
  compiled = lowered.compile()
  done = time.process_time()
  memory = compiled.memory_analysis()
  text = compiled.as_text()
  module = hlo.Program(text)
  row = {
    'program': program,
    'shape': shape,
    'target': target,
    'trace_s': round(traced - began, 1),
    'compile_s': round(done - traced, 1),
    'arguments': memory.argument_size_in_bytes,
    'temporaries': memory.temp_size_in_bytes,
    'aliased': memory.alias_size_in_bytes,
    'donated': _donated(lowered),
    'accessed': module.accessed(module.entry),
    'moved': module.moved_arguments(least=1 << 18),
  }
  cost = compiled.cost_analysis()
  if cost and 'bytes accessed' in cost:
    row['cost_analysis'] = cost['bytes accessed']
  if program == 'decode':
    kind, _ = programs.PROGRAMS[program]
    _, body = max(module.loops(), key=lambda x: module.accessed(x[1]))
    row['needed'] = kind(programs.SHAPES[shape], devices).needed()
    row['body'] = module.accessed(body)
    row['heaviest'] = module.heaviest(body)
  return row, text


def _donated(lowered):
  """Bytes on each device of the arguments that were donated."""
  import jax

  total = 0
  infos = jax.tree.leaves(lowered.args_info)
  for info in infos:
    if info.donated:
      sharding = getattr(info, 'sharding', None)
      shape = info.shape
      if sharding is not None:
        shape = sharding.shard_shape(shape)
      size = 1
      for n in shape:
        size *= n
      total += size * getattr(info.dtype, 'itemsize', 8)
  return total


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--target', nargs='+', default=['h100', 'v5e:4'])
  parser.add_argument('--shape', nargs='+', default=['small'])
  parser.add_argument('--program', nargs='+', default=['prefill', 'decode', 'score', 'sft', 'dpo', 'grpo'])
  parser.add_argument('--text', help='file for the text of the last program')
  args = parser.parse_args()
  os.environ.update(targets.environment())
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  for each in itertools.product(args.program, args.shape, args.target):
    try:
      row, text = report(*each)
    except Exception as error:  # the test says which program failed, and how
      import traceback
      traceback.print_exc()
      row, text = dict(zip(('program', 'shape', 'target'), each)), ''
      row['error'] = f'{type(error).__name__}: {error}'[:2000]
    print(json.dumps(row), flush=True)
  if args.text:
    pathlib.Path(args.text).write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main()
