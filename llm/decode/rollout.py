"""Completions of the model in training, by the project's own decoding."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm.buckets import fine_bucket
from llm.decode.completion import Completion
from llm.decode.generate import generate
from llm.decode.sampling_params import SamplingParams
from llm.decode.step import CHUNK_STEPS
from llm.models.transformer import Transformer


def sample_completions(
  model: Transformer,
  params: Any,
  prompts: Sequence[Sequence[int]],
  *,
  group_size: int,
  seed: Sequence[int],
  max_new_tokens: int,
  temperature: float,
  eos_ids: Sequence[int],
) -> list[Completion]:
  """Samples `group_size` completions for each prompt; they share its prefill.

  Completion i is drawn with a seed of its own, which follows from (seed, i):
  the same call gives the same completions.

  Args:
    model: the Transformer.
    params: its present parameters; they are not copied.
    prompts: token ids.
    group_size: G.
    seed: numbers that name this rollout, such as (run's seed, rollout).
    max_new_tokens: of a completion, its end token included.
    temperature: 0 takes the most likely tokens.
    eos_ids: tokens that end a completion.

  Returns:
    Completions, consecutive groups.
  """
  count = len(prompts) * group_size
  seeds = np.random.SeedSequence(seed).generate_state(count)
  settings = [
    SamplingParams(
      max_new_tokens=max_new_tokens, temperature=temperature, seed=int(s)
    )
    for s in seeds
  ]
  rows = [prompt for prompt in prompts for _ in range(group_size)]
  return generate(
    model,
    params,
    rows,
    settings,
    eos_ids=eos_ids,
    chunk_steps=_chunk_steps(max_new_tokens),
    order=('temperature',),  # no other stage is on, and each costs compile time
  )


def _chunk_steps(max_new_tokens: int) -> int:
  """Steps of equal chunks, so that none runs past the longest completion.

  The first token comes from prefill: 4 -> 3, 17 -> 16, 18 -> 9.
  """
  steps = max(max_new_tokens - 1, 1)
  return -(-steps // -(-steps // CHUNK_STEPS))


def rows_after_prompts(
  prompts: Sequence[Sequence[int]], completions: Sequence[Completion]
) -> dict[str, np.ndarray]:
  """Completions as a batch for the train step, apart from their prompts.

  A row is what the model reads to predict a completion: the prompt's last
  token, and the completion without its last. For the prompt p q r and the
  completion a b c:

    prompt_tokens  p q     tokens        r a b
    prompt_lengths 2       positions     2 3 4
                           targets       a b c
                           old_logprobs  a b c

  So a step reads prompts once where rows share them (`rl.loss`).

  Args:
    prompts: token ids, one per completion.
    completions: what was drawn.

  Returns:
    `tokens`, `targets`, `positions`: int32[B, T]; `mask`: bool[B, T];
    `old_logprobs`: float32[B, T], of the targets at the temperature that they
    were drawn with; `prompt_tokens`: int32[B, P]; `prompt_lengths`: int32[B].
    T and P are on the ladder 16, 24, 32, 48, ….
  """
  lengths = [len(completion.token_ids) for completion in completions]
  before = [len(prompt) - 1 for prompt in prompts]
  shape = (len(completions), fine_bucket(max(lengths), 16))
  batch = {
    'tokens': np.zeros(shape, np.int32),
    'targets': np.zeros(shape, np.int32),
    'positions': np.zeros(shape, np.int32),
    'mask': np.zeros(shape, bool),
    'old_logprobs': np.zeros(shape, np.float32),
    'prompt_tokens': np.zeros(
      (len(completions), fine_bucket(max(before), 16)), np.int32
    ),
    'prompt_lengths': np.array(before, np.int32),
  }
  for i, (prompt, completion) in enumerate(
    zip(prompts, completions, strict=True)
  ):
    end = lengths[i]
    batch['tokens'][i, :end] = [prompt[-1], *completion.token_ids[:-1]]
    batch['targets'][i, :end] = completion.token_ids
    batch['positions'][i, :end] = before[i] + np.arange(end)
    batch['mask'][i, :end] = True
    batch['old_logprobs'][i, :end] = completion.logprobs_processed
    batch['prompt_tokens'][i, : before[i]] = prompt[:-1]
  return batch


def completion_arrays(
  prompts: Sequence[Sequence[int]], completions: Sequence[Completion]
) -> dict[str, np.ndarray]:
  """Rows of prompt and completion as a batch for the train step.

  What belongs to the prediction of token t + 1 stands at position t, as in
  `losses.language.next_token_targets`:

    tokens        p p a b .    loss_mask   0 0 1 1 0
    old_logprobs  0 a b 0 0

  Args:
    prompts: token ids, one per completion.
    completions: what was drawn.

  Returns:
    `tokens`, `segment_ids`, `positions`: int32[B, T]; `loss_mask`: bool[B, T];
    `old_logprobs`: float32[B, T], of the drawn tokens at the temperature that
    they were drawn with. T is on the ladder 16, 24, 32, 48, ….
  """
  lengths = [
    len(p) + len(a.token_ids) for p, a in zip(prompts, completions, strict=True)
  ]
  shape = (len(lengths), fine_bucket(max(lengths), 16))
  batch = {
    'tokens': np.zeros(shape, np.int32),
    'segment_ids': np.zeros(shape, np.int32),
    'positions': np.zeros(shape, np.int32),
    'loss_mask': np.zeros(shape, bool),
    'old_logprobs': np.zeros(shape, np.float32),
  }
  for i, (prompt, completion) in enumerate(
    zip(prompts, completions, strict=True)
  ):
    start, end = len(prompt), lengths[i]
    batch['tokens'][i, :end] = [*prompt, *completion.token_ids]
    batch['segment_ids'][i, :end] = 1
    batch['positions'][i, :end] = np.arange(end)
    batch['loss_mask'][i, start:end] = True
    batch['old_logprobs'][i, start - 1 : end - 1] = (
      completion.logprobs_processed
    )
  return batch
