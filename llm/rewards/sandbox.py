"""Programs that a model wrote, run with limits."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile

from llm.errors import UserError

# A word that only the parent knows is written after the tests, so that a
# program that ends the process early has not passed them. One that looks for
# the word in the frames of this process finds it: see `passes`.
_RUNNER = """
import resource, sys

def limit(size, seconds):
  for name, bound in (
    ('RLIMIT_AS', size),
    ('RLIMIT_CPU', seconds),
    ('RLIMIT_FSIZE', 1 << 20),
    ('RLIMIT_NPROC', 0),
    ('RLIMIT_CORE', 0),
  ):
    resource.setrlimit(getattr(resource, name), (bound, bound))

def of_unittest(trace):
  files = []
  while trace:
    files.append(trace.tb_frame.f_code.co_filename)
    trace = trace.tb_next
  return files[-1].endswith('unittest/main.py') and 'program' not in files

def run(size, seconds, path, word, program, tests):
  limit(int(size), int(seconds))
  sys.argv[1:] = []
  main = sys.modules['__main__'] = type(sys)('__main__')
  exec(compile(program, 'program', 'exec'), main.__dict__)
  try:
    exec(compile(tests, 'tests', 'exec'), main.__dict__)
  except SystemExit as end:  # how unittest.main() ends, and how a program may
    if end.code or not of_unittest(end.__traceback__):
      raise
  with open(path, 'w') as file:
    file.write(word)

run(*sys.argv[1:], *sys.stdin.read().split(chr(0)))
"""


def passes(
  completion: str, tests: str, *, seconds: float = 2.0, megabytes: int = 512
) -> bool:
  """Whether a Python program runs, and its tests after it.

  They run in a process of their own, with the standard library only, in an
  empty folder, with bounds on time, memory, the size of files and, but for
  root, on further processes; those that it started are ended with it, unless
  they left its session. That contains accidents, and programs that end
  the process so as not to be tested. It is no jail for hostile code: a program
  shares the interpreter with its tests, and can alter what they see.

  Args:
    completion: the program.
    tests: run after it, in the same name space; they pass if they come to
      their end, or to that of `unittest.main()`, and raise nothing.
    seconds: of wall time for the whole.
    megabytes: of address space.

  Raises:
    UserError: a limit that no program can keep.
  """
  if seconds <= 0 or megabytes < 64:
    raise UserError(
      f'seconds={seconds}, megabytes={megabytes}: use more than 0 seconds and '
      'at least 64 megabytes'
    )
  completion, tests = (text.replace('\0', '') for text in (completion, tests))
  word = secrets.token_hex(16)
  with tempfile.TemporaryDirectory() as folder:
    inside, said = os.path.join(folder, 'inside'), os.path.join(folder, 'said')
    os.mkdir(inside)
    limits = [str(megabytes << 20), str(int(seconds) + 1)]
    process = subprocess.Popen(
      [sys.executable, '-I', '-S', '-c', _RUNNER, *limits, said],
      cwd=inside,
      env={'PATH': os.defpath},
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    try:
      text = '\0'.join((word, completion, tests))
      process.communicate(text.encode(errors='replace'), timeout=seconds)
    except subprocess.TimeoutExpired:
      return False
    finally:
      _end(process)
    return process.returncode == 0 and _read(said) == word


def _end(process: subprocess.Popen) -> None:
  """Ends the process and all that it started."""
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
  process.wait()


def _read(path: str) -> str | None:
  try:
    with open(path, encoding='utf-8') as file:
      return file.read()
  except OSError:
    return None
