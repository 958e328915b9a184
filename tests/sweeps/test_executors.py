import os
import sys
import time

import pytest

from llm.sweeps import executors


def make_run(tmp_path, name, code):
  workdir = tmp_path / name
  command = [sys.executable, '-S', '-c', f'w = {str(workdir)!r}\n{code}']
  return executors.Run(name, {}, str(workdir), command)


WRITE = "open(w + '/result.json', 'w').write('{}')"


def test_runs_end_as_what_they_are(tmp_path):
  good = make_run(tmp_path, 'good', WRITE)
  bad = make_run(tmp_path, 'bad', "print('x')\nraise SystemExit(3)")
  mute = make_run(tmp_path, 'mute', 'pass')
  shot = make_run(tmp_path, 'shot', 'import os; os.kill(os.getpid(), 9)')
  seen = []
  executors.run_local([good, bad, mute, shot], 2, seen.append)
  assert [run.state for run in (good, bad, mute, shot)] == [
    'done',
    'failed',
    'failed',
    'failed',
  ]
  assert bad.why == 'exit status 3'
  assert mute.why == 'its task wrote no result.json'
  assert shot.why == 'ended by SIGKILL'
  assert executors.tail(bad.log_path) == ['x']
  assert os.path.exists(good.done_path)
  assert not os.path.exists(mute.done_path)
  assert sum(run is good for run in seen) == 2  # started, ended


def test_a_finished_run_is_skipped_and_a_half_written_one_emptied(tmp_path):
  done = make_run(tmp_path, 'done', 'raise SystemExit(1)')
  half = make_run(tmp_path, 'half', WRITE)
  for run in (done, half):
    os.makedirs(run.workdir)
    with open(os.path.join(run.workdir, 'left'), 'w') as file:
      file.write('x')
  with open(done.done_path, 'w') as file:
    file.write('1.0\n')
  executors.run_local([done, half], 1, lambda run: None)
  assert (done.state, half.state) == ('done before', 'done')
  assert sorted(os.listdir(done.workdir)) == ['DONE', 'left']
  assert sorted(os.listdir(half.workdir)) == ['DONE', 'log.txt', 'result.json']


def test_no_more_than_parallel_at_a_time(tmp_path):
  runs = [
    make_run(tmp_path, str(i), f'import time; time.sleep(0.1); {WRITE}')
    for i in range(5)
  ]
  most = 0

  def on_change(_):
    nonlocal most
    most = max(most, sum(run.state == 'running' for run in runs))

  executors.run_local(runs, 2, on_change)
  assert most == 2
  assert all(run.state == 'done' for run in runs)


def test_an_interrupt_ends_the_processes(tmp_path):
  code = (
    "import os, time; open(w + '/pid', 'w').write(str(os.getpid()))\n"
    'time.sleep(60)'
  )
  run = make_run(tmp_path, 'long', code)
  pid_path = os.path.join(run.workdir, 'pid')
  pid = []

  def on_change(_):
    if os.path.exists(pid_path) and os.path.getsize(pid_path):
      pid.append(int(open(pid_path).read()))
      os.kill(os.getpid(), 15)  # as a scheduler would end the sweep
      time.sleep(1)

  with pytest.raises(KeyboardInterrupt):
    executors.run_local([run], 1, on_change)
  with pytest.raises(ProcessLookupError):
    os.kill(pid[0], 0)
  assert not os.path.exists(run.done_path)


def test_tail_of_a_long_log_and_of_none(tmp_path):
  path = tmp_path / 'log.txt'
  path.write_text(''.join(f'line {i}\n' for i in range(20_000)))
  assert executors.tail(str(path), 2) == ['line 19998', 'line 19999']
  assert executors.tail(str(tmp_path / 'none')) == []
