"""Hugging Face model folders, opened: config, tokenizer, recommended settings.

Nothing here needs JAX until weights are read.
"""

import dataclasses
import functools
import os
from typing import Any

from llm.checkpoints.hf import peft_config
from llm.checkpoints.hf.config import from_hf, passed_over, token_ids
from llm.checkpoints.hf.folder import read_json
from llm.checkpoints.hf.values import read_token_ids
from llm.checkpoints.opened import Progress, Source, locate_tokenizer
from llm.errors import UserError
from llm.models.config import ModelConfig

_CONFIG, _GENERATION = 'config.json', 'generation_config.json'


def open_folder(path: str, tokenizer: str | None = None) -> Source | None:
  """Opens a folder that holds a language model; None if `path` is no folder.

  Args:
    path: of the folder.
    tokenizer: where the tokenizer is; None: in the folder, or nowhere.

  Raises:
    UserError: it holds adapters or a model that scores texts, or a file is
      missing or broken.
  """
  if not os.path.isdir(path):
    return None
  names = os.listdir(path)
  if peft_config.CONFIG in names and _CONFIG not in names:
    raise UserError(
      f'model.path={path!r} holds adapters alone: name them as lora.path, and '
      'their base as model.path'
    )
  return _open(path, tokenizer, reward_head=False)


def open_reward_model(path: str) -> Source:
  """Opens a folder that holds a model of one score for each text.

  What `load` gives has a `reward_head` and no `lm_head`.

  Raises:
    UserError: no such folder, or it holds something else than a
      `…ForSequenceClassification` with one label.
  """
  return _open(path, None, reward_head=True)


def read_config(path: str) -> ModelConfig:
  """The config of a model folder, with the stop ids of its generation config.

  `eos_ids` are those of `generation_config.json` if it names any, else those of
  `config.json`, as in transformers.

  Raises:
    UserError: no such folder or file, or a config that `from_hf` refuses.
  """
  if not os.path.isdir(path):
    raise UserError(
      f'model.path={path!r}: no such folder; give one with config.json and '
      'safetensors files'
    )
  config, generation = from_hf(_raw(path)), read_generation(path)
  if not generation:
    return config
  generation = read_token_ids(_GENERATION, generation, config.vocab_size)
  eos = token_ids(generation.get('eos_token_id')) or config.eos_ids
  bos, pad = generation.get('bos_token_id'), generation.get('pad_token_id')
  return dataclasses.replace(
    config,
    eos_ids=tuple(dict.fromkeys(eos)),
    bos_id=bos if config.bos_id is None else config.bos_id,
    pad_id=pad if config.pad_id is None else config.pad_id,
  )


def read_generation(path: str) -> dict[str, Any]:
  """What `generation_config.json` of a folder says; {} where it is missing.

  Raises:
    UserError: the file is no JSON object.
  """
  file = os.path.join(path, _GENERATION)
  return read_json(file) if os.path.exists(file) else {}


def _open(path: str, tokenizer: str | None, reward_head: bool) -> Source:
  config = read_config(path)
  _check_head(path, reward_head)
  return Source(
    path=path,
    config=config,
    tokenizer_path=locate_tokenizer(path, tokenizer),
    generation=read_generation(path),
    note=passed_over(_raw(path)),
    end_ids=_end_ids(path),
    load=functools.partial(_load, path, config, reward_head),
  )


def _end_ids(path: str) -> dict[str, tuple[int, ...]]:
  """What each file says ends a text; files that say nothing are left out."""
  found = {_GENERATION: read_generation(path), _CONFIG: _raw(path)}
  text = found[_CONFIG].get('text_config')
  if isinstance(text, dict):  # of a multimodal model
    found[_CONFIG] = text | found[_CONFIG]
  ids = {
    name: token_ids(raw.get('eos_token_id')) for name, raw in found.items()
  }
  return {name: of_file for name, of_file in ids.items() if of_file}


def _load(
  path: str,
  config: ModelConfig,
  reward_head: bool,
  dtype: Any,
  shardings: Any = None,
  progress: Progress | None = None,
) -> Any:
  from llm.checkpoints.hf.load import load_params

  return load_params(
    path,
    config,
    dtype=dtype,
    reward_head=reward_head,
    shardings=shardings,
    progress=progress,
  )


def _check_head(path: str, reward_head: bool) -> None:
  """Refuses a model that scores texts where one that writes is needed.

  Or the other way round.
  """
  raw = _raw(path)
  name = (raw.get('architectures') or ['nothing'])[0]
  scores = name.endswith('ForSequenceClassification')
  if scores and not reward_head:
    raise UserError(
      f'model.path={path!r}: holds a {name}, which scores texts and writes '
      'none: give a language model'
    )
  labels = len(raw.get('id2label') or ('', ''))
  if reward_head and not (scores and labels == 1):
    raise UserError(
      f'{path}: holds a {name}'
      + (f' with {labels} labels' if 'Classification' in name else '')
      + ', and a reward model is a …ForSequenceClassification with one label: '
      'train one with configs/reward.py and export it'
    )


def _raw(path: str) -> dict[str, Any]:
  return read_json(os.path.join(path, _CONFIG))
