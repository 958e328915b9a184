"""The run `online_preference`: DPO on pairs of answers just drawn.

A rollout draws a group of answers to each of `train.batch_size` prompts; the
best and the worst of a group by their rewards are a pair. It is trained on in
`rollout.minibatches` parts, `rollout.epochs` times. Checkpoints are taken
where the reference, too, follows from the parameters: between rollouts, and
where the reference is refreshed, as it becomes the policy.
"""

from llm.data import prompts as prompts_lib
from llm.errors import UserError
from llm.parallel.mesh import make_mesh
from llm.tasks import preference_loss, rl, training, training_checks
from llm.tasks.online_pairs import PairRollouts
from llm.tasks.rl_rewards import make_rater
from llm.tasks.rl_rollouts import make_evaluate
from llm.tasks.trainee import build_trainee, draw_blueprint


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/online_preference.py` asks for.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  workdir = training_checks.check_fields(config, workdir)
  _check_fields(config)
  mesh = make_mesh(config.mesh)
  microbatches = rl.check_rows(
    config.train.batch_size // config.rollout.minibatches,
    config.train.microbatch_size,
    mesh,
    'the pairs of a step (train.batch_size / rollout.minibatches)',
  )
  blueprint = draw_blueprint(config)
  prompts, held_out = rl.load(config, blueprint)
  identity = {
    'prompts': prompts_lib.digest(prompts),
    'held_out': held_out and prompts_lib.digest(held_out),
  }
  training.check_run(config, workdir, blueprint, identity)
  rater = make_rater(config, blueprint.tokenizer, blueprint.config.vocab_size)
  trainee = build_trainee(config, blueprint, mesh)
  rollouts = PairRollouts(config, trainee, prompts, rater)
  recipe = training.Recipe(
    loss_fn=preference_loss.make_preference_loss(trainee, config.loss),
    draw=rollouts.draw,
    data_state=rollouts.get_state,
    seek=rollouts.set_state,
    evaluate=held_out and make_evaluate(config, trainee, held_out, rater),
    identity=identity,
    may_stop=rollouts.is_whole,
    answers=rollouts.answers,
  )
  return training.train(config, workdir, trainee, recipe, microbatches)


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
