import pytest

from llm.errors import UserError
from llm.sweeps import report


def test_csv_comes_back_equal(tmp_path):
  rows = [
    {'run': 'a,1', 'x': 1, 'wall_s': 0.5},
    {'run': 'b', 'x': 0.1 + 0.2, 'name': 'two "words"', 'wall_s': 1.5},
  ]
  path = str(tmp_path / 'results.csv')
  report.write_csv(path, rows)
  with open(path) as file:
    assert file.readline() == 'run,x,name,wall_s\n'
  assert report.read_csv(path) == [rows[0] | {'name': None}, rows[1]]
  with pytest.raises(UserError, match='no results yet'):
    report.read_csv(str(tmp_path / 'other.csv'))


def test_summary_groups_over_seeds():
  rows = [
    {'run': f'{k}{s}', 'config.k': k, 'config.seed': s, 'y': y, 'ok': True}
    for k, s, y in ((1, 0, 1.0), (1, 1, 3.0), (2, 0, 5.0))
  ]
  got = report.summarize(rows, ['config.k'])
  assert got[0]['n'] == 2 and got[0]['y'][0] == 2.0
  # stdev sqrt(2), error 1, t(1) = 12.706
  assert got[0]['y'][1] == pytest.approx(12.7062, abs=1e-4)
  assert list(got[1]) == ['config.k', 'n', 'y']
  assert report.markdown_table(got) == (
    '| config.k | n | y |\n'
    '| --- | --- | --- |\n'
    '| 1 | 2 | 2 ± 13 |\n'
    '| 2 | 1 | 5 |\n'
  )
