"""`llm.load`, `llm.generate`, `llm.score`: the notebook's way in."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llm.checkpoints.source import (
  DTYPES,
  check_dtype,
  read_adapters,
  read_config,
  read_params,
  read_tokenizer,
)
from llm.decode.generate import Completion
from llm.decode.generate import generate as generate_tokens
from llm.decode.sampling_params import SamplingParams, expand, stop_ids
from llm.decode.score import score as score_tokens
from llm.models.transformer import Transformer, stack_layers
from llm.text.text_stream import start_stream
from llm.text.tokenizer import Tokenizer


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

  completions = generate_tokens(
    model, params, rows, samples, eos_ids=eos_ids, on_tokens=on_tokens
  )
  for completion, stream in zip(completions, streams, strict=True):
    stream.finish()
    completion.text = stream.text
  return completions


def score(
  model: Transformer,
  params: Any,
  tokenizer: Tokenizer,
  texts: str | Sequence[str],
) -> list[np.ndarray]:
  """Natural-log probability of each token of each text, given those before."""
  texts = [texts] if isinstance(texts, str) else list(texts)
  return score_tokens(model, params, [tokenizer.encode(t) for t in texts])
