"""The rows that all systems train on: random tokens, a prompt without loss."""

from typing import Any

import numpy as np


def draw_rows(settings: Any) -> tuple[np.ndarray, np.ndarray]:
  """Tokens int32[rows, T] and, of each row, which are to be predicted.

  Args:
    settings: `seed`, `rows`, `tokens`, `prompt_tokens`, `vocab_size`.
  """
  rng = np.random.default_rng(settings['seed'])
  shape = (settings['rows'], settings['tokens'])
  tokens = rng.integers(0, settings['vocab_size'], shape).astype(np.int32)
  mask = np.arange(settings['tokens']) >= settings['prompt_tokens']
  return tokens, np.broadcast_to(mask, shape)
