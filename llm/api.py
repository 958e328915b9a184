"""`llm.load`, `llm.generate`, `llm.score`: the notebook's way in."""

from collections.abc import Callable, Sequence
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.checkpoints import hf, llama2c, peft
from llm.decode.generate import Completion
from llm.decode.generate import generate as generate_tokens
from llm.decode.sampling_params import SamplingParams, expand, stop_ids
from llm.decode.score import score as score_tokens
from llm.errors import UserError
from llm.models import lora as lora_lib
from llm.models.config import ModelConfig
from llm.models.lora_config import LoraConfig
from llm.models.transformer import Transformer, stack_layers
from llm.text.text_stream import start_stream
from llm.text.tokenizer import Tokenizer, find_tokenizer, load_tokenizer

DTYPES = {
  'float32': jnp.float32,
  'bfloat16': jnp.bfloat16,
  'float16': jnp.float16,
}
# Settings, and the adapter tree in float32 with unrolled layers.
Adapters = tuple[LoraConfig, Any]


def check_dtype(dtype: str) -> None:
  """Raises UserError unless `dtype` is a name of `DTYPES`."""
  if dtype not in DTYPES:
    raise UserError(f'dtype={dtype!r}: use one of {", ".join(DTYPES)}')


def read_config(path: str) -> ModelConfig:
  """The shape of a Hugging Face folder or a llama2.c `.bin` file."""
  if not os.path.exists(path):
    raise UserError(
      f'model.path={path!r} does not exist: give a Hugging Face model folder '
      'or a llama2.c .bin file'
    )
  names = os.listdir(path) if os.path.isdir(path) else []
  if peft.CONFIG in names and 'config.json' not in names:
    raise UserError(
      f'model.path={path!r} holds adapters alone: name them as lora.path, and '
      'their base as model.path'
    )
  if not os.path.isdir(path):
    return llama2c.read_config(path)
  config, kind = hf.read_config(path), hf.architecture(path)
  if kind.endswith('ForSequenceClassification'):
    raise UserError(
      f'model.path={path!r}: holds a {kind}, which scores texts and writes '
      'none: give a language model'
    )
  return config


def read_adapters(path: str, config: ModelConfig) -> Adapters:
  """The adapters of a PEFT folder for a model of this shape.

  Raises:
    UserError: as `peft.read_peft`.
  """
  try:
    return peft.read_peft(path, config)
  except UserError as error:
    raise UserError(f'lora.path: {error}') from None


def read_params(
  path: str,
  config: ModelConfig,
  dtype: Any,
  progress=None,
  shardings=None,
  adapters: Adapters | None = None,
):
  """The parameters of either.

  Args:
    path: of the checkpoint.
    config: as `read_config` gives it.
    dtype: of every parameter.
    progress: as for `load`.
    shardings: tree of where each parameter shall lie; None: the default
      device.
    adapters: of `read_adapters`, to be added to the weights: the sum is taken
      in float32 and cast to `dtype`.
  """
  if os.path.isdir(path):
    params = hf.load_params(
      path, config, dtype=dtype, shardings=shardings, progress=progress
    )
  else:
    params = llama2c.load(path, dtype=dtype, progress=progress)[1]
    if shardings is not None:
      params = jax.device_put(params, shardings)
  if adapters is None:
    return params
  settings, lora = adapters
  merge = jax.jit(
    lora_lib.merge,
    static_argnums=2,
    donate_argnums=0,
    out_shardings=shardings,
  )
  return merge(params, lora, settings)


def read_tokenizer(
  path: str, config: ModelConfig, where: str | None = None
) -> Tokenizer | None:
  """The tokenizer at `where`, else the one with the model, else None."""
  where = where or find_tokenizer(path)
  return load_tokenizer(where, config.vocab_size) if where else None


def load(
  path: str,
  *,
  dtype: str = 'float32',
  tokenizer: str | None = None,
  lora: str | None = None,
  scan_layers: bool = False,
  progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Transformer, Any, Tokenizer | None]:
  """Reads a model for generation or training.

  Args:
    path: a Hugging Face folder, or a llama2.c `.bin` file.
    dtype: of parameters and activations: float32, bfloat16 or float16.
    tokenizer: where the tokenizer is; default: with the model.
    lora: a PEFT folder, whose adapters are added to the weights.
    scan_layers: stack the layers (see `Transformer`).
    progress: called with (bytes done, bytes in all, tensor name).

  Returns:
    (model, params, tokenizer); the tokenizer is None where there is none.

  Raises:
    UserError: naming the file and the remedy.
  """
  check_dtype(dtype)
  config = read_config(path)
  text = read_tokenizer(path, config, tokenizer)
  adapters = read_adapters(lora, config) if lora else None
  params = read_params(path, config, DTYPES[dtype], progress, adapters=adapters)
  if scan_layers:
    params = stack_layers(params, config)
  model = Transformer(config, scan_layers=scan_layers, dtype=DTYPES[dtype])
  return model, params, text


def generate(
  model: Transformer,
  params: Any,
  tokenizer: Tokenizer,
  prompts: str | Sequence[str],
  **sampling: Any,
) -> list[Completion]:
  """Completes one or several texts.

  Args:
    model, params, tokenizer: as `load` gives them.
    prompts: a text or a list of texts.
    **sampling: fields of `SamplingParams`, the same for all prompts.

  Returns:
    One Completion per prompt and sample, prompt by prompt, each with its
    `text`: what follows the prompt, without stop strings and end tokens.

  Raises:
    UserError: a setting is wrong, or a prompt does not fit.
  """
  texts = [prompts] if isinstance(prompts, str) else list(prompts)
  settings = SamplingParams.from_dict(sampling)
  eos_ids = model.config.eos_ids
  rows, streams, samples = [], [], []
  for text in texts:
    tokens = tokenizer.encode(text)
    for sample in expand(settings):
      rows.append(tokens)
      samples.append(sample)
      ends = stop_ids(sample, eos_ids)
      streams.append(
        start_stream(tokenizer, tokens, sample.stop, ends, continues=True)
      )

  def on_tokens(i: int, ids: list[int]) -> int | None:
    before = streams[i].length
    streams[i].push(ids)
    return streams[i].length - before if streams[i].stopped else None

  answers = generate_tokens(
    model, params, rows, samples, eos_ids=eos_ids, on_tokens=on_tokens
  )
  for answer, stream in zip(answers, streams, strict=True):
    stream.finish()
    answer.text = stream.text
  return answers


def score(
  model: Transformer,
  params: Any,
  tokenizer: Tokenizer,
  texts: str | Sequence[str],
) -> list[np.ndarray]:
  """Natural-log probability of each token of each text, given those before."""
  texts = [texts] if isinstance(texts, str) else list(texts)
  return score_tokens(model, params, [tokenizer.encode(t) for t in texts])
