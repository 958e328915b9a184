"""The model folder and the rows that both systems read."""

import json
import os
from typing import Any

import jax
import numpy as np

from llm.checkpoints.hf.save import save_hf
from llm.models.config import ModelConfig
from llm.models.transformer import init_params

# What the last two ids of the vocabulary stand for; the others are words.
END, PAD = '<end>', '<pad>'


def write_model(folder: str, shape: dict[str, Any], settings) -> None:
  """A random Llama and a tokenizer of made-up words, w0 w1 w2 …

  Args:
    folder: gets both.
    shape: sizes of the model.
    settings: `seed`, `max_length`.
  """
  end, pad = shape['vocab_size'] - 2, shape['vocab_size'] - 1
  config = ModelConfig(
    **shape,
    num_kv_heads=shape['num_heads'],
    max_length=settings['max_length'],
    norm_eps=1e-5,
    tie_embeddings=False,
    eos_ids=(end,),
  )
  save_hf(folder, config, init_params(config, jax.random.key(settings['seed'])))
  vocab = {f'w{i}': i for i in range(end)} | {END: end, PAD: pad}
  special = [
    {
      'id': vocab[text],
      'content': text,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': True,
    }
    for text in (END, PAD)
  ]
  tokenizer = {
    'version': '1.0',
    'added_tokens': special,
    'pre_tokenizer': {'type': 'WhitespaceSplit'},
    'model': {'type': 'WordLevel', 'vocab': vocab, 'unk_token': PAD},
  }
  _write(folder, 'tokenizer.json', tokenizer)
  named = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': END,
    'pad_token': PAD,
  }
  _write(folder, 'tokenizer_config.json', named)


def draw_pairs(settings: dict[str, Any]) -> list[dict[str, str]]:
  """Random prompts with two random completions each, of random lengths."""
  rng = np.random.default_rng(settings['seed'])
  words = settings['vocab_size'] - 2
  pairs = []
  for _ in range(settings['rows']):
    lengths = rng.integers(
      settings['least_tokens'], settings['most_tokens'] + 1, 2
    )
    prompt, chosen, rejected = (
      ' '.join(f'w{i}' for i in rng.integers(0, words, length))
      for length in (settings['prompt_tokens'], *lengths)
    )
    # Completions start where the prompt ends.
    pairs.append(
      {'prompt': prompt, 'chosen': f' {chosen}', 'rejected': f' {rejected}'}
    )
  return pairs


def draw_prompts(settings: dict[str, Any]) -> list[dict[str, str]]:
  """Random prompts."""
  rng = np.random.default_rng(settings['seed'])
  shape = settings['rows'], settings['prompt_tokens']
  ids = rng.integers(0, settings['vocab_size'] - 2, shape)
  return [{'prompt': ' '.join(f'w{i}' for i in row)} for row in ids]


def even_share(text: str) -> float:
  """The reward: the share of words with an even number."""
  words = [w for w in text.split() if w.startswith('w')]
  return sum(int(w[1:]) % 2 == 0 for w in words) / max(1, len(words))


def reward(row, text: str, finished: bool) -> float:
  """`even_share`, as a reward of `configs/rl.py`."""
  del row, finished
  return even_share(text)


def _write(folder: str, name: str, value: dict[str, Any]) -> None:
  with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
    json.dump(value, file)
