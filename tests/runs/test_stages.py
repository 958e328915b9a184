"""A stage is there whole or not at all, and made once per set of settings."""

import contextlib

import pytest

from llm.runs.stages import run_stage


def _builder(calls, text='made'):
  def build(folder):
    calls.append(folder.name)
    (folder / 'file.txt').write_text(text)
    return {'length': len(text)}

  return build


def test_a_done_stage_is_skipped(tmp_path):
  calls = []
  first = run_stage(tmp_path, 'one', {'a': (1, 2)}, _builder(calls))
  again = run_stage(tmp_path, 'one', {'a': (1, 2)}, _builder(calls))
  assert len(calls) == 1
  assert (first.skipped, again.skipped) == (False, True)
  assert first.folder == again.folder == tmp_path / 'one'
  assert first.summary == again.summary == {'length': 4}


def test_other_settings_make_it_anew(tmp_path):
  calls = []
  run_stage(tmp_path, 'one', {'a': 1}, _builder(calls, 'old'))
  stage = run_stage(tmp_path, 'one', {'a': 2}, _builder(calls, 'newer'))
  assert len(calls) == 2 and not stage.skipped
  assert (tmp_path / 'one' / 'file.txt').read_text() == 'newer'
  assert [path.name for path in tmp_path.iterdir()] == ['one']


def test_a_killed_build_leaves_nothing_that_looks_done(tmp_path):
  def dies(folder):
    (folder / 'half.txt').write_text('half')
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run_stage(tmp_path, 'one', {}, dies)
  assert not (tmp_path / 'one').exists()
  stage = run_stage(tmp_path, 'one', {}, _builder([]))
  assert sorted(path.name for path in stage.folder.iterdir()) == [
    'file.txt',
    'stage.json',
  ]


def test_a_failed_second_build_keeps_the_first(tmp_path):
  def dies(folder):
    raise KeyboardInterrupt

  run_stage(tmp_path, 'one', {'a': 1}, _builder([]))
  with pytest.raises(KeyboardInterrupt):
    run_stage(tmp_path, 'one', {'a': 2}, dies)
  assert run_stage(tmp_path, 'one', {'a': 1}, _builder([])).skipped


def test_a_folder_without_its_record_is_made_again(tmp_path):
  run_stage(tmp_path, 'one', {}, _builder([]))
  (tmp_path / 'one' / 'stage.json').write_text('{"inputs"')
  assert not run_stage(tmp_path, 'one', {}, _builder([])).skipped


def test_a_build_in_place_goes_on_from_what_was_left(tmp_path):
  def build(folder):
    half = folder / 'half.txt'
    if not half.exists():
      half.write_text('half')
      raise KeyboardInterrupt
    return {'went_on': half.read_text()}

  with pytest.raises(KeyboardInterrupt):
    run_stage(tmp_path, 'one', {'a': (1,)}, build, in_place=True)
  stage = run_stage(tmp_path, 'one', {'a': (1,)}, build, in_place=True)
  assert (stage.summary, stage.skipped) == ({'went_on': 'half'}, False)
  assert run_stage(tmp_path, 'one', {'a': (1,)}, build, in_place=True).skipped


@pytest.mark.parametrize('is_done', (False, True))
def test_other_settings_begin_in_an_empty_folder(tmp_path, is_done):
  def build(folder):
    (folder / 'left.txt').write_text('left')
    if not is_done:
      raise KeyboardInterrupt
    return {}

  def empty(folder):
    return {'files': sorted(path.name for path in folder.iterdir())}

  with contextlib.suppress(KeyboardInterrupt):
    run_stage(tmp_path, 'one', {'a': 1}, build, in_place=True)
  stage = run_stage(tmp_path, 'one', {'a': 2}, empty, in_place=True)
  assert stage.summary == {'files': ['stage.json']}
