"""Texts that a model in training writes at each evaluation."""

import json
import os

import jax

from llm.engine.completions import TextModel, complete
from llm.engine.requests import (
  Request,
  make_samples,
  model_limits,
  with_turn_end,
)
from llm.errors import RunError, UserError
from llm.models.config import length_limit
from llm.models.transformer import Transformer
from llm.parallel.distributed import is_writer, to_host
from llm.runs.checks import sample_params
from llm.runs.train_model import ModelSpec, TrainModel
from llm.text import chat_options
from llm.text.chat_options import ChatOptions


def check_fields(sample, spec: ModelSpec, options: ChatOptions) -> None:
  """Refuses prompts that the model cannot continue.

  Args:
    sample: `config.sample`.
    spec: the model.
    options: how conversations are rendered.
  """
  tok, limit = spec.tokenizer, length_limit(spec.config)
  if sample.chat and not tok.chat_templates:
    raise UserError(
      'sample.chat=True: the tokenizer has no chat template; set it to False'
    )
  for prompt in sample.prompts:
    where = f'sample.prompts: {prompt!r}'
    if not isinstance(prompt, str):
      raise UserError(f'{where}: use texts only')
    tokens = len(_encode(tok, prompt, sample.chat, options))
    if not tokens:
      raise UserError(f'{where} has no token: leave it out')
    if tokens + sample.max_new_tokens > limit:
      raise UserError(
        f'{where}: its {tokens} tokens and sample.max_new_tokens='
        f'{sample.max_new_tokens} exceed the {limit} that the model takes'
      )


def write_samples(
  sample,
  options: ChatOptions,
  train_model: TrainModel,
  params,
  step: int,
  workdir: str,
) -> list[dict]:
  """Continues each prompt and appends the rows to `samples.jsonl`.

  Args:
    sample: `prompts`, `chat`, `max_new_tokens`, `temperature`.
    options: how conversations are rendered.
    train_model: the model.
    params: what is trained.
    step: for the rows.
    workdir: of the run.

  Returns:
    The rows: `step`, `prompt`, `text`, `finish_reason`.

  Raises:
    RunError: the file cannot be written.
  """
  spec = train_model.spec
  tok = spec.tokenizer
  sampling = sample_params(sample)
  if sample.chat:
    sampling = with_turn_end(sampling, tok)
  requests = [
    Request(
      i,
      prompt,
      tuple(_encode(tok, prompt, sample.chat, options)),
      sampling,
      continues=not sample.chat,
    )
    for i, prompt in enumerate(sample.prompts)
  ]
  params = train_model.merged(params)
  if jax.process_count() > 1:  # decoding is of one process: each one does it
    params = jax.device_put(to_host(params))
  text_model = TextModel(
    Transformer(spec.config, dtype=train_model.model.dtype),
    params,
    tok,
    model_limits(spec.config),
  )
  rows = [
    {
      'step': step,
      'prompt': prompt,
      'text': completion.text,
      'finish_reason': completion.finish_reason,
    }
    for prompt, completion in zip(
      sample.prompts, complete(text_model, make_samples(requests)), strict=True
    )
  ]
  append_rows(workdir, 'samples.jsonl', rows)
  return rows


def append_rows(workdir: str, name: str, rows: list[dict]) -> None:
  """Adds rows to a file of the workdir, in the process that writes.

  Raises:
    RunError: the file cannot be written.
  """
  if not is_writer():
    return
  path = os.path.join(workdir, name)
  try:
    with open(path, 'a', encoding='utf-8') as file:
      file.writelines(json.dumps(r, ensure_ascii=False) + '\n' for r in rows)
  except OSError as error:
    raise RunError(
      f'{path}: {error.strerror}; fix this and start the same command again'
    ) from error


def _encode(tok, prompt: str, as_chat: bool, options: ChatOptions) -> list[int]:
  if as_chat:
    messages = [{'role': 'user', 'content': prompt}]
    return chat_options.encode(tok, messages, options)
  return tok.encode_prompt(prompt)
