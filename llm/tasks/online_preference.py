"""The run `online_preference`: DPO on pairs of answers just drawn.

A rollout draws a group of answers to each of `train.batch_size` prompts; the
best and the worst of a group by their rewards are a pair. It is trained on in
`rollout.minibatches` parts, `rollout.epochs` times. Checkpoints are taken
where the reference, too, follows from the parameters: between rollouts, and
where the reference is refreshed, as it becomes the policy.
"""

from llm.align import preference_loss
from llm.data import prompts as prompts_lib
from llm.errors import UserError
from llm.parallel.mesh import make_mesh
from llm.rewards.rater import make_rater
from llm.rl.online_pairs import PairRollouts
from llm.rl.rollouts import make_evaluate
from llm.runs import checks as training_checks
from llm.runs import training
from llm.runs.train_model import build_train_model, read_spec
from llm.tasks import rl
from llm.tasks.training_fields import training_fields


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/online_preference.py` asks for.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  workdir = training_checks.check_fields(
    config, workdir, training_fields(config.task)
  )
  _check_fields(config)
  mesh = make_mesh(config.mesh)
  microbatches = rl.check_rows(
    config.train.batch_size // config.rollout.minibatches,
    config.train.microbatch_size,
    mesh,
    'the pairs of a step (train.batch_size / rollout.minibatches)',
  )
  spec = read_spec(config)
  prompts, held_out = rl.load(config, spec)
  identity = {
    'prompts': prompts_lib.digest(prompts),
    'held_out': held_out and prompts_lib.digest(held_out),
  }
  training.check_run(config, workdir, spec, identity)
  rater = make_rater(config, spec.tokenizer, spec.config.vocab_size)
  train_model = build_train_model(config, spec, mesh)
  rollouts = PairRollouts(config, train_model, prompts, rater)
  recipe = training.Recipe(
    loss_fn=preference_loss.make_preference_loss(train_model, config.loss),
    draw=rollouts.draw,
    data_state=rollouts.get_state,
    seek=rollouts.set_state,
    evaluate=held_out and make_evaluate(config, train_model, held_out, rater),
    identity=identity,
    may_stop=rollouts.is_whole,
    completions=rollouts.completions,
  )
  return training.train(config, workdir, train_model, recipe, microbatches)


def _check_fields(config) -> None:
  loss, rollout, train = config.loss, config.rollout, config.train
  if loss.name == preference_loss.KTO:
    raise UserError(
      "loss.name='kto': learns from single answers; here they come in pairs, "
      f'use one of {", ".join(preference_loss.LOSSES)}'
    )
  preference_loss.check_loss(loss)
  if rollout.group_size < 2:
    raise UserError(
      f'rollout.group_size={rollout.group_size}: a pair needs 2 answers or more'
    )
  rl.check_rollout(config)
  every = rollout.reference_every
  if every < 0:
    raise UserError(
      f'rollout.reference_every={every}: use 0 (never) or a number of rollouts'
    )
  if every and not preference_loss.needs_reference(loss.name):
    raise UserError(
      f'rollout.reference_every={every}: {loss.name} has no reference; use 0'
    )
  steps = rollout.epochs * rollout.minibatches * every
  for name in rl.ends_of_rollouts(config):
    if every and train[name] % steps:
      raise UserError(
        f'train.{name}={train[name]}: use a multiple of {steps} '
        '(rollout.reference_every · rollout.epochs · rollout.minibatches), the '
        'steps with one reference'
      )
