"""Checkpoints of llama2.c: one file of float32 arrays.

The legacy format of https://github.com/karpathy/llama2.c: seven int32 (dim,
hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len), then the
weights. A negative vocab_size says that the output table is not shared with
the embedding.
"""

import functools
import math
import os
from typing import Any

import numpy as np

from llm.checkpoints.opened import Progress, Source, locate_tokenizer
from llm.errors import UserError
from llm.models.config import ModelConfig

_HEADER = (
  'dim',
  'hidden_dim',
  'n_layers',
  'n_heads',
  'n_kv_heads',
  'vocab_size',
  'max_seq_len',
)
_HEADER_BYTES = 4 * len(_HEADER)
_BOS, _EOS = 1, 2


def open_file(path: str, tokenizer: str | None = None) -> Source | None:
  """Opens a `.bin` file of llama2.c; None if `path` is no file.

  Args:
    path: of the file.
    tokenizer: where the tokenizer is; None: beside the file, or nowhere.

  Raises:
    UserError: as `load`.
  """
  if not os.path.isfile(path):
    return None
  config = read_config(path)
  return Source(
    path=path,
    config=config,
    tokenizer_path=locate_tokenizer(path, tokenizer),
    generation={},
    load=functools.partial(_load_params, path),
  )


def read_config(path: str) -> ModelConfig:
  """The config of a `.bin` file of llama2.c; raises as `load` does."""
  if not os.path.isfile(path):
    raise UserError(f'model.path={path!r}: no such file')
  config = _config(path)
  _check_size(path, config, _layout(config))
  return config


def load(
  path: str, *, dtype: Any = np.float32, progress: Progress | None = None
) -> tuple[ModelConfig, Any]:
  """Reads a `.bin` file of llama2.c.

  Its rotary embedding turns neighbouring features (2i, 2i + 1); here feature i
  turns with i + H/2, so the rows of the query and key weights are permuted.
  Training documents are only separated by BOS, so BOS ends a completion, too.

  Args:
    path: the file.
    dtype: of the parameters.
    progress: called after each array of the file.

  Returns:
    (config, parameter tree with unrolled layers, of `jax.Array`).

  Raises:
    UserError: no such file, a header of impossible numbers, or a size that is
      not what the header implies, by what is missing or left over.
  """
  import jax

  config = read_config(path)
  layout = _layout(config)
  total = sum(4 * math.prod(shape) for shape in layout.values())
  weights, done = {}, 0
  with open(path, 'rb') as file:
    file.seek(_HEADER_BYTES)
    for name, shape in layout.items():
      weights[name] = np.fromfile(file, '<f4', math.prod(shape)).reshape(shape)
      done += weights[name].nbytes
      if progress is not None:
        progress(done, total, name)
  params = _params(config, weights)
  return config, jax.tree.map(lambda x: jax.numpy.asarray(x, dtype), params)


def _load_params(
  path: str,
  dtype: Any,
  shardings: Any = None,
  progress: Progress | None = None,
) -> Any:
  import jax

  params = load(path, dtype=dtype, progress=progress)[1]
  return params if shardings is None else jax.device_put(params, shardings)


def _config(path: str) -> ModelConfig:
  header = np.fromfile(path, '<i4', len(_HEADER))
  if len(header) < len(_HEADER):
    raise UserError(
      f'{path}: truncated, {os.path.getsize(path)} bytes are less than the '
      f'header of {_HEADER_BYTES}: download it again'
    )
  values = dict(zip(_HEADER, header.tolist(), strict=True))
  tied = values['vocab_size'] > 0
  values['vocab_size'] = abs(values['vocab_size'])
  heads, kv_heads = values['n_heads'], values['n_kv_heads']
  wrong = [f'{name}={value}' for name, value in values.items() if value < 1]
  if wrong or values['dim'] % (2 * heads) or heads % kv_heads:
    raise UserError(
      f'{path}: not a llama2.c checkpoint (legacy float32 export): its header '
      f'says {", ".join(f"{k}={v}" for k, v in values.items())}'
    )
  return ModelConfig(
    vocab_size=values['vocab_size'],
    embed_dim=values['dim'],
    hidden_dim=values['hidden_dim'],
    num_layers=values['n_layers'],
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=values['dim'] // heads,
    max_length=values['max_seq_len'],
    norm_eps=1e-5,
    tie_embeddings=tied,
    bos_id=_BOS,
    eos_ids=(_BOS, _EOS),
  )


def _layout(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The arrays of the file, in order."""
  n, d, f = config.num_layers, config.embed_dim, config.hidden_dim
  q = config.num_heads * config.head_dim
  kv = config.num_kv_heads * config.head_dim
  layout = {
    'tok_embeddings': (config.vocab_size, d),
    'attention_norm': (n, d),
    'wq': (n, q, d),
    'wk': (n, kv, d),
    'wv': (n, kv, d),
    'wo': (n, d, q),
    'ffn_norm': (n, d),
    'w1': (n, f, d),
    'w2': (n, d, f),
    'w3': (n, f, d),
    'norm': (d,),
    # Rotary tables that the format keeps for its first reader.
    'freq_cis_real': (config.max_length, config.head_dim // 2),
    'freq_cis_imag': (config.max_length, config.head_dim // 2),
  }
  if not config.tie_embeddings:
    layout['output'] = (config.vocab_size, d)
  return layout


def _check_size(path: str, config: ModelConfig, layout: dict) -> None:
  size, end = os.path.getsize(path), _HEADER_BYTES
  for name, shape in layout.items():
    end += 4 * math.prod(shape)
    if size < end:
      raise UserError(
        f'{path}: truncated in {name}{list(shape)}, which ends at byte {end} '
        f'of {size}: download it again'
      )
  if size > end:
    raise UserError(
      f'{path}: {size - end} bytes after the last array: not a llama2.c '
      'checkpoint of the legacy float32 format, export it again'
    )


def _params(config: ModelConfig, w: dict[str, np.ndarray]) -> dict:
  """The parameter tree; see `llm.checkpoints.hf.names` for the fused leaves."""
  d, k, g, h = (
    config.embed_dim,
    config.num_kv_heads,
    config.queries_per_kv,
    config.head_dim,
  )
  params = {
    'embedder': {'embedding': w['tok_embeddings']},
    'final_norm': {'scale': w['norm']},
  }
  if not config.tie_embeddings:
    params['lm_head'] = {'kernel': w['output']}
  for i in range(config.num_layers):
    query = _half_split(w['wq'][i].reshape(k, g, h, d))
    key = _half_split(w['wk'][i].reshape(k, 1, h, d))
    qkv = np.concatenate([query, key, w['wv'][i].reshape(k, 1, h, d)], axis=1)
    params[f'layers_{i}'] = {
      'pre_attention_norm': {'scale': w['attention_norm'][i]},
      'attn': {
        'qkv': {'kernel': qkv},
        'o': {'kernel': w['wo'][i].reshape(d, config.num_heads, h)},
      },
      'pre_mlp_norm': {'scale': w['ffn_norm'][i]},
      'mlp': {
        'gate_up': {'kernel': np.stack([w['w1'][i], w['w3'][i]])},
        'down': {'kernel': w['w2'][i]},
      },
    }
  return params


def _half_split(kernel: np.ndarray) -> np.ndarray:
  """Rows [..., H, D]: pairs (2i, 2i + 1) to (i, i + H/2)."""
  return np.concatenate([kernel[..., 0::2, :], kernel[..., 1::2, :]], axis=-2)
