"""`llm.load`, `llm.generate`, `llm.score`: the notebook's way in."""

from collections.abc import Callable, Sequence
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from llm.checkpoints import hf, llama2c
from llm.decode.generate import Completion
from llm.decode.generate import generate as generate_tokens
from llm.decode.sampling_params import SamplingParams
from llm.decode.score import score as score_tokens
from llm.errors import UserError
from llm.models.transformer import Transformer, stack_layers
from llm.text.tokenizer import Tokenizer, find_tokenizer, load_tokenizer

DTYPES = {
  'float32': jnp.float32,
  'bfloat16': jnp.bfloat16,
  'float16': jnp.float16,
}


def load(
  path: str,
  *,
  dtype: str = 'float32',
  tokenizer: str | None = None,
  scan_layers: bool = False,
  progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Transformer, Any, Tokenizer | None]:
  """Reads a model for generation or training.

  Args:
    path: a Hugging Face folder, or a llama2.c `.bin` file.
    dtype: of parameters and activations: float32, bfloat16 or float16.
    tokenizer: where the tokenizer is; default: with the model.
    scan_layers: stack the layers (see `Transformer`).
    progress: called with (bytes done, bytes in all, tensor name).

  Returns:
    (model, params, tokenizer); the tokenizer is None where there is none.

  Raises:
    UserError: naming the file and the remedy.
  """
  if dtype not in DTYPES:
    raise UserError(f'dtype={dtype!r}: use one of {", ".join(DTYPES)}')
  if not os.path.exists(path):
    raise UserError(
      f'model.path={path!r} does not exist: give a Hugging Face model folder '
      'or a llama2.c .bin file'
    )
  if os.path.isdir(path):
    config = hf.read_config(path)
    params = hf.load_params(
      path, config, dtype=DTYPES[dtype], progress=progress
    )
  else:
    config, params = llama2c.load(path, dtype=DTYPES[dtype], progress=progress)
  found = tokenizer or find_tokenizer(path)
  text = load_tokenizer(found, config.vocab_size) if found else None
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
    One Completion per prompt (`tokenizer.decode(c.token_ids)` is its text).
  """
  texts = [prompts] if isinstance(prompts, str) else list(prompts)
  settings = SamplingParams(**sampling)
  eos_ids = model.config.eos_ids or tokenizer.eos_ids
  rows = [tokenizer.encode(text) for text in texts]
  return generate_tokens(
    model, params, rows, [settings] * len(rows), eos_ids=eos_ids
  )


def score(
  model: Transformer,
  params: Any,
  tokenizer: Tokenizer,
  texts: str | Sequence[str],
) -> list[np.ndarray]:
  """Natural-log probability of each token of each text, given those before."""
  texts = [texts] if isinstance(texts, str) else list(texts)
  return score_tokens(model, params, [tokenizer.encode(t) for t in texts])
