import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from llm.runs import outputs


def test_metrics_are_appended_one_object_a_line(tmp_path):
  outputs.append_metrics(tmp_path, {'step': 1, 'loss': jnp.float32(0.5)})
  outputs.append_metrics(
    tmp_path, {'step': 2, 'loss': np.float32(np.nan), 'norm': math.inf}
  )
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()

  def refuse(constant):
    raise ValueError(f'{constant} is no JSON')

  rows = [json.loads(line, parse_constant=refuse) for line in lines]
  assert rows[0] == {'step': 1, 'loss': 0.5}
  assert rows[1] == {'step': 2, 'loss': None, 'norm': None}


def test_a_result_is_whole_or_absent(tmp_path):
  outputs.write_result(tmp_path, {'y': np.arange(2), 'a': {'b': 1}})
  assert json.loads((tmp_path / 'result.json').read_text()) == {
    'y': [0, 1],
    'a': {'b': 1},
  }
  with pytest.raises(TypeError, match='cannot write a object'):
    outputs.write_result(tmp_path, {'y': 3, 'z': object()})
  assert json.loads((tmp_path / 'result.json').read_text())['y'] == [0, 1]


def test_git_commit_names_a_commit_or_nothing():
  commit = outputs.git_commit()
  assert commit is None or len(commit.rstrip('+')) == 40
