"""The run `rl`: a model that learns from the rewards of its own completions.

A rollout samples a group of completions of each of `train.batch_size` prompts,
rates them, and is then trained on in `rollout.minibatches` parts,
`rollout.epochs` times: so many steps. Checkpoints are taken between rollouts
only, so that a resumed run never needs a half-used one.
"""

import dataclasses
import functools

from llm.data import prompts as prompts_lib
from llm.rewards.rater import make_rater
from llm.rl import checks
from llm.rl.evaluate import make_evaluate
from llm.rl.loss import make_rl_loss, rows_of_a_prompt
from llm.rl.policy_rollouts import PolicyRollouts
from llm.rl.prompts import load
from llm.rl.rollouts import Rollouts
from llm.rl.trained import policy_of, with_reference, with_value_head
from llm.runs import training
from llm.runs.first_rows import ROWS, show_first
from llm.runs.job import check_job, open_job, with_ends
from llm.runs.train_model import build_train_model
from llm.tasks.training_fields import training_fields


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/rl.py` asks for.

  Returns:
    The contents of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  algorithm = checks.check_fields(config)
  rows = checks.step_rows(config)
  job = open_job(config, workdir, training_fields(config.task), rows)
  prompts, held_out, counts = load(config, job.spec)
  job = with_ends(job, more=prompts_lib.turn_ends(prompts, job.spec.tokenizer))
  contents = {
    'prompts': prompts_lib.digest(prompts),
    'held_out': held_out and prompts_lib.digest(held_out),
  }
  shape = job.spec.config
  with_head = functools.partial(with_value_head, algorithm, shape.embed_dim)
  check_job(job, contents, with_head=with_head)
  show_first(job, prompts_lib.as_examples(prompts[:ROWS]))
  rater = make_rater(config, job.spec.tokenizer, shape.vocab_size)
  train_model = build_train_model(config, job.spec, job.mesh)
  train_model = with_reference(algorithm, train_model)
  maker = PolicyRollouts(config, algorithm, train_model, prompts, rater)
  rollouts = Rollouts(config, train_model, maker)
  shared = rows_of_a_prompt(config, train_model, rows, job.microbatches)
  recipe = training.Recipe(
    loss_fn=make_rl_loss(train_model, algorithm, config.rollout, shared),
    batches=rollouts,
    evaluate=held_out and make_evaluate(config, train_model, held_out, rater),
    contents=contents,
    counts=counts,
    language_model=policy_of,
    may_stop=rollouts.is_whole,
    completions=rollouts.completions,
  )
  trained = dataclasses.replace(
    train_model, params=with_head(train_model.params)
  )
  return training.train(job, trained, recipe)
