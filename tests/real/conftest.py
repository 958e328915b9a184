"""Real checkpoints and data, from the folder that LLM_DATA names."""

import os
import pathlib

import pytest


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
  folder = pathlib.Path(os.environ['LLM_DATA']).resolve()
  if not folder.is_dir():
    pytest.fail(f'LLM_DATA={folder}: no such folder')
  return folder
