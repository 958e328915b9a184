"""`llm.load`, `llm.generate`, `llm.score`: for notebooks and scripts."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from llm.checkpoints.source import (
  add_adapters,
  check_dtype,
  open_checkpoint,
  to_dtype,
)
from llm.decode.completion import Completion
from llm.decode.sampling_params import SamplingParams
from llm.decode.score import score as score_tokens
from llm.engine.completions import TextModel, complete
from llm.engine.requests import (
  Request,
  make_samples,
  model_limits,
  prompt_tokens,
  with_turn_end,
)
from llm.models.transformer import Transformer, stack_layers
from llm.text import chat_options
from llm.text.chat_options import ChatOptions
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
  source = open_checkpoint(path, tokenizer)
  if lora is not None:
    source = add_adapters(source, lora)
  read_tokenizer = source.tokenizer  # refused, if it is, before the weights
  params = source.load(to_dtype(dtype), progress=progress)
  if scan_layers:
    params = stack_layers(params, source.config)
  shape = dataclasses.replace(source.config, eos_ids=source.ends.ids)
  model = Transformer(shape, scan_layers=scan_layers, dtype=to_dtype(dtype))
  return model, params, read_tokenizer


def generate(
  model: Transformer,
  params: Any,
  tokenizer: Tokenizer,
  prompts: str | Sequence[str] | Sequence[dict] | Sequence[Sequence[dict]],
  *,
  system: str = '',
  tools: Any = (),
  chat_template_kwargs: Any = {},
  **sampling: Any,
) -> list[Completion]:
  """Completes one or several texts or conversations.

  Args:
    model, params, tokenizer: as `load` gives them.
    prompts: a text, or a conversation as a list of messages such as {'role':
      'user', 'content': 'hi'}; or a list of these.
    system: system prompt of conversations that have none.
    tools: JSON schemas of functions, see `chat_options.parse_tools`.
    chat_template_kwargs: variables of the chat template, such as
      {'enable_thinking': False}.
    **sampling: fields of `SamplingParams`, the same for all prompts.

  Returns:
    One Completion per prompt and sample, prompt by prompt, each with its
    `text`: what follows the prompt, without stop strings and end tokens.

  Raises:
    UserError: a setting is wrong, or a prompt does not fit.
  """
  settings = SamplingParams.from_dict(sampling)
  options = ChatOptions(
    system,
    chat_options.parse_tools(tools, 'tools'),
    chat_options.parse_variables(chat_template_kwargs, 'chat_template_kwargs'),
  )
  requests = []
  for i, row in enumerate(_as_rows(prompts)):
    text, tokens = prompt_tokens(row, tokenizer, f'prompts[{i}]', options)
    continues = 'prompt' in row
    own = settings if continues else with_turn_end(settings, tokenizer)
    requests.append(Request(i, text, tokens, own, continues))
  text_model = TextModel(model, params, tokenizer, model_limits(model.config))
  return list(complete(text_model, make_samples(requests)))


def _as_rows(prompts) -> list[dict[str, Any]]:
  """Texts and conversations as rows of a file of prompts."""
  if isinstance(prompts, str):
    prompts = [prompts]
  prompts = list(prompts)
  if prompts and isinstance(prompts[0], dict):  # one conversation
    prompts = [prompts]
  return [
    {'prompt': prompt} if isinstance(prompt, str) else {'messages': prompt}
    for prompt in prompts
  ]


def score(
  model: Transformer,
  params: Any,
  tokenizer: Tokenizer,
  texts: str | Sequence[str],
) -> list[np.ndarray]:
  """Natural-log probability of each token of each text, given those before."""
  texts = [texts] if isinstance(texts, str) else list(texts)
  return score_tokens(model, params, [tokenizer.encode(t) for t in texts])
