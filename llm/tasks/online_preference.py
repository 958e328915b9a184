"""The run `online_preference`: DPO on pairs of completions just sampled.

A rollout samples a group of completions of each of `train.batch_size` prompts;
the best and the worst of a group by their rewards are a pair. It is trained on
in `rollout.minibatches` parts, `rollout.epochs` times. Checkpoints are taken
where the reference, too, follows from the parameters: between rollouts, and
where the reference is refreshed, as it becomes the policy.
"""

from llm.align.preference_loss import make_preference_loss
from llm.data import prompts as prompts_lib
from llm.rewards.rater import make_rater
from llm.rl import checks
from llm.rl.evaluate import make_evaluate
from llm.rl.online_pairs import PairRollouts
from llm.rl.prompts import load
from llm.rl.rollouts import Rollouts
from llm.runs import training
from llm.runs.first_rows import ROWS, show_first
from llm.runs.job import check_job, open_job, with_ends
from llm.runs.train_model import build_train_model
from llm.tasks.training_fields import training_fields


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/online_preference.py` asks for.

  Returns:
    The contents of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  options = checks.check_online(config)
  rows = checks.step_pairs(config)
  job = open_job(config, workdir, training_fields(config.task), rows)
  prompts, held_out, counts = load(config, job.spec)
  job = with_ends(job, more=prompts_lib.turn_ends(prompts, job.spec.tokenizer))
  contents = {
    'prompts': prompts_lib.digest(prompts),
    'held_out': held_out and prompts_lib.digest(held_out),
  }
  check_job(job, contents)
  show_first(job, prompts_lib.as_examples(prompts[:ROWS]))
  rater = make_rater(config, job.spec.tokenizer, job.spec.config.vocab_size)
  train_model = build_train_model(config, job.spec, job.mesh)
  maker = PairRollouts(config, train_model, prompts, rater)
  rollouts = Rollouts(config, train_model, maker)
  recipe = training.Recipe(
    loss_fn=make_preference_loss(train_model, config.loss, options),
    batches=rollouts,
    evaluate=held_out and make_evaluate(config, train_model, held_out, rater),
    contents=contents,
    counts=counts,
    may_stop=rollouts.is_whole,
    completions=rollouts.completions,
  )
  return training.train(job, train_model, recipe)
