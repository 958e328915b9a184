"""Compiles programs for targets and prints what the compilers say of them.

  PYTHONPATH=. python tests/aot/compile.py decode:1b:v5e --text=OUT.txt

An argument is PROGRAM:SHAPE:TARGET, of tests/aot/programs.py and
llm/parallel/targets.py. One JSON object a program, on a line of its own. All
share one process: imports and the compilers' start are paid once.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import time

from llm.parallel import targets

# Smaller buffers are no copies of a cache or of a weight.
_LEAST = 1 << 18


def report(program, shape, target):
  """Compiles one program: (what is known of it, its text).

  Bytes are of one device. `donated` are those of the arguments, `aliased` those
  that the compiler uses again. `accessed` is what the whole program reads and
  writes, its loops counted once; for `decode` also `body`, one step, and
  `needed`, what a step cannot do without. `moved` lists buffers that hold an
  argument's numbers once more, `kernels` the library's and Pallas' that are
  called. Seconds are those of all processors.
  """
  import hlo
  import programs

  began = time.process_time()
  devices = targets.target_devices(target)
  lowered, donated = programs.lower(program, shape, devices)
  traced = time.process_time()
  compiled = lowered.compile()
  done = time.process_time()
  memory, text = compiled.memory_analysis(), compiled.as_text()
  module = hlo.Program(text)
  row = {
    'program': program,
    'shape': shape,
    'target': target,
    'trace_s': round(traced - began, 1),
    'compile_s': round(done - traced, 1),
    'temporaries': memory.temp_size_in_bytes,
    'donated': programs.bytes_on_a_device(donated),
    'aliased': memory.alias_size_in_bytes,
    'accessed': module.accessed(module.entry),
    'moved': module.moved_arguments(_LEAST),
    'kernels': sorted(set(re.findall(r'custom_call_target="([^"]+)"', text))),
  }
  cost = compiled.cost_analysis() or {}
  if 'bytes accessed' in cost:  # on a TPU; counts its on-chip memory too
    row['cost_analysis'] = cost['bytes accessed']
  if program == 'decode':
    body = max((body for _, body in module.loops()), key=module.accessed)
    row['body'] = module.accessed(body)
    row['needed'] = programs.Decoding(programs.SHAPES[shape], devices).needed()
    row['heaviest'] = module.heaviest(body)
  return row, text


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('programs', nargs='+', metavar='PROGRAM:SHAPE:TARGET')
  parser.add_argument('--text', help='file for the text of the last program')
  args = parser.parse_args()
  os.environ.update(targets.environment())
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  for name in args.programs:
    row, text = report(*name.split(':', 2))
    print(json.dumps(row), flush=True)
  if args.text:
    pathlib.Path(args.text).write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main()
