"""The batches of a distillation: rows as they are, or with new completions."""

import dataclasses
import functools
from typing import Any

import numpy as np

from llm.align.checks import reads_completions, samples_completions
from llm.align.teacher import Teacher
from llm.data import dataset, pipeline, prompts, records, shapes
from llm.data.examples import Examples
from llm.decode.rollout import completion_arrays, sample_completions
from llm.errors import UserError
from llm.models.config import length_limit
from llm.models.transformer import Transformer
from llm.parallel.sharding import shard_batch
from llm.runs import datasets, outputs
from llm.runs.batches import make_source
from llm.runs.checks import check_data, row_options
from llm.runs.train_model import ModelSpec, TrainModel


def load(
  config, spec: ModelSpec, teacher: Teacher
) -> tuple[Examples, Examples | None]:
  """The rows to train on and those held out, or None.

  Rows of a prompt alone become examples without a completion.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  data, rollout = config.data, config.rollout
  check_data(data, length_limit(spec.config))
  if not _are_prompts(data):
    examples, held_out = datasets.load_texts(config, spec)
    if samples_completions(rollout) and 'text' in examples.counts['shapes']:
      raise UserError(
        f'data.path={data.path!r}: texts have no prompt to complete; use '
        'rollout.lmbda=0 without rollout.seq_kd, or rows with a prompt'
      )
  elif reads_completions(rollout):
    raise UserError(
      f'data.path={data.path!r}: has prompts without completions, which '
      f'rollout.lmbda={rollout.lmbda} reads in a share of the batches; use '
      'rollout.lmbda=1 or rollout.seq_kd=True'
    )
  else:
    examples, held_out = _load_prompts(config, spec)
  if samples_completions(rollout):
    longest = int(prompts.prompt_lengths(examples).max())
    _check_room(rollout, longest, spec.config, 'student')
    _check_room(rollout, longest, teacher.model.config, 'teacher')
  return examples, held_out


class Batches:
  """The `batches.Batches` of a run; each batch has the next rows.

  Whether batch n is on policy is a function of (seed, n), and so are the
  completions, given the parameters: the state is the position in the rows and
  n.
  """

  def __init__(
    self, config, train_model: TrainModel, teacher: Teacher, examples: Examples
  ):
    self._config, self._teacher = config, teacher
    self._train_model = train_model
    self._examples, self._count = examples, 0
    self._prompts = prompts.prompt_lengths(examples)
    self._decoder = Transformer(
      train_model.spec.config, dtype=train_model.model.dtype
    )
    self._source = make_source(config, examples, named=True)

  def next_batch(self, state) -> tuple[Any, dict[str, float]]:
    """See `Batches`; where it is on policy, `state.params` complete prompts."""
    rollout, train_model = self._config.rollout, self._train_model
    batch, stats = next(self._source)
    rows = batch.pop('examples')[:, 0]
    rng = np.random.default_rng((self._config.seed, self._count))
    on_policy = rng.random() < rollout.lmbda
    if on_policy:
      batch, more = self._complete(
        rows, self._decoder, train_model.merged(state.params)
      )
      stats |= more
    elif rollout.seq_kd:
      batch, more = self._complete(
        rows, self._teacher.model, train_model.frozen['teacher']
      )
      stats |= more
    self._count += 1
    return shard_batch(batch, train_model.mesh), stats | {
      'on_policy': float(on_policy)
    }

  def get_state(self) -> dict[str, Any]:
    """See `Batches`."""
    return {'source': self._source.get_state(), 'drawn': self._count}

  def set_state(self, state: dict[str, Any]) -> None:
    """See `Batches`."""
    self._source.set_state(state['source'])
    self._count = state['drawn']

  def _complete(self, rows, model: Transformer, params):
    """Samples completions of these examples' prompts: a batch and numbers."""
    rollout = self._config.rollout
    asked = [
      self._examples[i].tokens[: self._prompts[i]].tolist() for i in rows
    ]
    completions = sample_completions(
      model,
      params,
      asked,
      group_size=1,
      seed=(self._config.seed, self._count),
      max_new_tokens=rollout.max_new_tokens,
      temperature=rollout.temperature,
      eos_ids=self._train_model.spec.config.eos_ids,
    )
    batch = completion_arrays(asked, completions)
    del batch['old_logprobs']
    return batch, pipeline.fill_stats(batch) | {
      'length': float(np.mean([len(c.token_ids) for c in completions])),
      'finished': float(
        np.mean([c.finish_reason == 'stop' for c in completions])
      ),
    }


def _are_prompts(data) -> bool:
  """True where the first row has a prompt and no completion."""
  rows = records.read_records(data.path, separator=data.separator)
  return shapes.is_prompt(next(rows).value, row_options(data))


def _load_prompts(config, spec: ModelSpec):
  """Prompts as examples without a completion; rows held out have one."""
  data = config.data
  if data.eval_fraction:
    raise UserError(
      f'data.eval_fraction={data.eval_fraction}: {data.path} has prompts '
      'without completions, and what is held out is scored on its '
      'completions; give rows that have some as data.eval_path'
    )
  load_eval = functools.partial(
    dataset.load_examples,
    tok=spec.tokenizer,
    max_length=data.max_length,
    overlong=data.overlong,
    options=row_options(data),
    cache_dir=outputs.cache_dir(),
  )
  rows, held_out, counts = datasets.load_prompts(
    config, spec, load_eval=load_eval
  )
  examples = dataclasses.replace(prompts.as_examples(rows), counts=counts)
  return examples, held_out


def _check_room(rollout, longest: int, shape, who: str) -> None:
  limit = length_limit(shape)
  if longest + rollout.max_new_tokens > limit:
    raise UserError(
      f'rollout.max_new_tokens={rollout.max_new_tokens}: with the longest '
      f'prompt of {longest} tokens that exceeds the {limit} that '
      f'the {who} takes; lower it or data.max_length'
    )
