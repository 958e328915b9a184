"""Do the sampler and the training forward say the same of an answer?"""

import jax
import numpy as np

from llm.decode.rollout import completion_arrays, sample_completions
from llm.losses.chunked import chunked_logprobs
from llm.losses.language import next_token_targets
from llm.models.transformer import output_weight


def gaps(model, params, prompts, *, group, temperature, **settings):
  """(answers, float[N]): |sampled - trained| log-probabilities of all tokens.

  Args:
    model: a Transformer.
    params: its parameters.
    prompts: ids.
    group: answers to each.
    temperature: of both.
    **settings: of `sample_completions`.
  """
  answers = sample_completions(
    model,
    params,
    prompts,
    group_size=group,
    temperature=temperature,
    **settings,
  )
  repeated = [prompt for prompt in prompts for _ in range(group)]
  batch = completion_arrays(repeated, answers)

  @jax.jit
  def forward(params, batch):
    hidden, _ = model.apply(
      {'params': params},
      batch['tokens'],
      positions=batch['positions'],
      segment_ids=batch['segment_ids'],
      method='trunk',
    )
    targets, weights = next_token_targets(
      batch['tokens'], batch['loss_mask'], batch['segment_ids']
    )
    table = output_weight(params, model.config)
    return weights, chunked_logprobs(
      hidden, table, targets, temperature=temperature
    )

  weights, logprobs = forward(params, batch)
  drawn = np.asarray(weights) > 0
  assert drawn.sum() == sum(len(a.token_ids) for a in answers)
  return answers, np.abs(np.asarray(logprobs) - batch['old_logprobs'])[drawn]
