"""The other systems: `transformers` on torch, and llama.cpp.

Each function reads a Hugging Face folder of a float32 Llama and returns a
greedy generator `(prompts, new_tokens) -> (tokens, prefill_s, decode_s)`:
prompts of one length; tokens int[B][new_tokens]; `prefill_s` until the first
token of every row is known on the host, `decode_s` for the others. Nothing
but the model and the argmax runs in the timed loops: no tokenizer, no
streaming, no end-of-sequence check.
"""

from collections.abc import Callable, Sequence
import ctypes
import json
import os
import sys
import time

import numpy as np

Generator = Callable[
  [Sequence[Sequence[int]], int], tuple[list[list[int]], float, float]
]

_GGML_LOG_LEVEL_ERROR = 4


def transformers_dynamic(folder: str, threads: int) -> Generator:
  """`transformers` with the cache that its `generate` uses by default."""
  from transformers import DynamicCache

  model = _transformers_model(folder, threads)
  return _transformers_loop(
    model, lambda length: DynamicCache(config=model.config)
  )


def transformers_static(folder: str, threads: int) -> Generator:
  """`transformers` with a cache that is allocated once, at its full length."""
  from transformers import StaticCache

  model = _transformers_model(folder, threads)
  caches = {}

  def cache(length):
    if length not in caches:
      caches[length] = StaticCache(config=model.config, max_cache_len=length)
    caches[length].reset()
    return caches[length]

  return _transformers_loop(model, cache)


def _transformers_model(folder, threads):
  import torch
  from transformers import AutoModelForCausalLM

  torch.set_num_threads(threads)
  model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='sdpa'
  )
  return model.eval()


def _transformers_loop(model, make_cache) -> Generator:
  import torch

  @torch.inference_mode()
  def generate(prompts, new_tokens):
    start = time.perf_counter()
    tokens = torch.tensor(prompts)
    cache = make_cache(tokens.shape[1] + new_tokens)
    out = []
    for step in range(new_tokens):
      logits = model(
        tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
      ).logits
      tokens = logits[:, -1].argmax(-1, keepdim=True)
      out.append(tokens)
      if step == 0:
        first = time.perf_counter()
    end = time.perf_counter()
    return torch.cat(out, dim=1).tolist(), first - start, end - first

  return generate


def llama_cpp(folder: str, threads: int) -> Generator:
  """llama.cpp through its C API, on a float32 GGUF; batches of one only."""
  import llama_cpp as api

  path = os.path.join(folder, 'model.gguf')
  if not os.path.exists(path):
    write_gguf(folder, path)
  log = api.llama_log_callback(_log_errors)
  api.llama_log_set(log, ctypes.c_void_p(0))
  api.llama_backend_init()
  model = api.llama_model_load_from_file(
    path.encode(), api.llama_model_default_params()
  )
  with open(os.path.join(folder, 'config.json'), encoding='utf-8') as file:
    config = json.load(file)
  params = api.llama_context_default_params()
  params.n_ctx = config['max_position_embeddings']
  params.n_batch = params.n_ubatch = 512
  params.n_threads = params.n_threads_batch = threads
  params.type_k = params.type_v = api.GGML_TYPE_F32  # as all others
  context = api.llama_init_from_model(model, params)
  if not context:
    raise RuntimeError(f'llama.cpp does not load {path}')
  vocab_size = config['vocab_size']

  def step(tokens):
    array = (api.llama_token * len(tokens))(*tokens)
    batch = api.llama_batch_get_one(array, len(tokens))
    status = api.llama_decode(context, batch)
    if status:
      raise RuntimeError(f'llama_decode ended with {status}')
    logits = api.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(logits, (vocab_size,)).argmax())

  def generate(prompts, new_tokens):
    (prompt,) = prompts
    start = time.perf_counter()
    api.llama_memory_clear(api.llama_get_memory(context), True)
    out = [step(prompt)]
    first = time.perf_counter()
    while len(out) < new_tokens:
      out.append(step(out[-1:]))
    return [out], first - start, time.perf_counter() - first

  generate.log = log  # the library calls it as long as the model lives
  return generate


def _log_errors(level, text, data):
  del data
  if level == _GGML_LOG_LEVEL_ERROR:
    sys.stderr.write(text.decode(errors='replace'))


def write_gguf(folder: str, path: str) -> None:
  """Writes a float32 GGUF of a Hugging Face folder with a Llama in it.

  There is no tokenizer in the file. llama.cpp rotates neighbouring pairs of a
  head's components, `transformers` pairs that are half a head apart: so the
  rows of the query and key matrices change places.
  """
  import gguf
  from safetensors.numpy import load_file

  with open(os.path.join(folder, 'config.json'), encoding='utf-8') as file:
    config = json.load(file)
  heads = config['num_attention_heads']
  kv_heads = config['num_key_value_heads']
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_context_length(config['max_position_embeddings'])
  writer.add_embedding_length(config['hidden_size'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_head_count(heads)
  writer.add_head_count_kv(kv_heads)
  writer.add_key_length(config['head_dim'])
  writer.add_value_length(config['head_dim'])
  writer.add_rope_dimension_count(config['head_dim'])
  writer.add_rope_freq_base(config['rope_theta'])
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  writer.add_vocab_size(config['vocab_size'])
  writer.add_file_type(gguf.LlamaFileType.ALL_F32)
  writer.add_tokenizer_model('none')
  names = gguf.get_tensor_name_map(
    gguf.MODEL_ARCH.LLAMA, config['num_hidden_layers']
  )
  for file in sorted(os.listdir(folder)):
    if not file.endswith('.safetensors'):
      continue
    for name, value in load_file(os.path.join(folder, file)).items():
      if name.endswith('q_proj.weight'):
        value = _interleave(value, heads)
      elif name.endswith('k_proj.weight'):
        value = _interleave(value, kv_heads)
      writer.add_tensor(
        names.get_name(name, try_suffixes=('.weight',)),
        np.ascontiguousarray(value, np.float32),
      )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _interleave(value: np.ndarray, heads: int) -> np.ndarray:
  """[heads * H, D]: row j of a head's first half beside row j of its second."""
  halves = value.reshape(heads, 2, -1, value.shape[-1])
  return halves.swapaxes(1, 2).reshape(value.shape)
