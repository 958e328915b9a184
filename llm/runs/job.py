"""How every training run begins: fields and model checked, weights read last.

A task calls `open_job`, reads its data, calls `check_job` and only then builds
its model: whatever is wrong with a run is refused before the weights are read.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import optax

from llm.errors import UserError
from llm.host import terminal
from llm.parallel.mesh import check_batch, make_mesh
from llm.runs import checks, exports, samples
from llm.runs.export_checks import check_exports
from llm.runs.identity import open_checkpoints
from llm.runs.train_model import ModelSpec, read_spec, trained_shapes
from llm.text.chat_options import read_options
from llm.train.optim import check_params, make_optimizer


@dataclasses.dataclass(frozen=True)
class Job:
  """A training run whose fields have been checked.

  Attributes:
    config: of `training_fields`.
    workdir: the run's folder.
    mesh: the devices.
    microbatches: parts of a step's batch.
    tx: the optimizer.
    spec: the model, without its weights.
  """

  config: Any
  workdir: str
  mesh: jax.sharding.Mesh
  microbatches: int
  tx: optax.GradientTransformation
  spec: ModelSpec


def open_job(
  config, workdir: str | None, defaults, rows: int | None = None
) -> Job:
  """Checks the fields that all runs share and reads the model's shape.

  Args:
    config: of `training_fields`.
    workdir: the run's folder.
    defaults: the config of this kind of run with nothing set.
    rows: of one optimizer step; None: `train.batch_size`.

  Raises:
    UserError: a field is wrong, or the model cannot be read.
  """
  workdir = checks.check_fields(config, workdir, defaults)
  check_exports(config, workdir)
  mesh = make_mesh(config.mesh)
  rows = config.train.batch_size if rows is None else rows
  microbatches = check_batch(rows, config.train.microbatch_size, mesh)
  tx = make_optimizer(config.optim, config.train.steps)
  return Job(config, workdir, mesh, microbatches, tx, read_spec(config))


def with_ends(
  job: Job, taught: Sequence[int] = (), more: Sequence[int] = ()
) -> Job:
  """The job of a model that also ends its completions with these tokens.

  So its samples, its rollouts and its export stop there.

  Args:
    job: of `open_job`.
    taught: what training teaches as an end, most frequent first; the first is
      the tokenizer's EOS from now on.
    more: other tokens that end a completion.
  """
  spec = job.spec
  ids = dict.fromkeys((*taught, *spec.config.eos_ids, *more))
  shape = dataclasses.replace(spec.config, eos_ids=tuple(ids))
  tok = spec.tokenizer
  if taught and taught[0] not in tok.eos_ids[:1]:
    terminal.log(
      f'completions are taught to end with {tok.token(taught[0])}, which is '
      "the model's EOS from now on"
    )
    tok = tok.with_eos(taught[0])
  spec = dataclasses.replace(spec, config=shape, tokenizer=tok)
  return dataclasses.replace(job, spec=spec)


def check_job(
  job: Job,
  contents: dict[str, Any],
  *,
  with_head: Callable[[Any], Any] = lambda params: params,
  reward_head: bool = False,
) -> None:
  """Refuses, before the weights are read, what would end the run later on.

  Args:
    job: of `open_job`.
    contents: the `Recipe`'s.
    with_head: parameters of the model -> all that will be trained.
    reward_head: the `Recipe` will have one.

  Raises:
    UserError: a field, an export folder or the workdir's checkpoint does not
      fit this run.
  """
  config, workdir, spec = job.config, job.workdir, job.spec
  options = read_options(config.data, 'data.')
  samples.check_fields(config.sample, spec, options)
  exports.check_fields(config, spec, reward_head)
  shapes = jax.eval_shape(with_head, trained_shapes(config, spec))
  check_params(config.optim, shapes)
  with open_checkpoints(config, workdir, spec, contents) as checkpoints:
    done = checkpoints.newest_step() or 0
  if done > config.train.steps:
    raise UserError(
      f'train.steps={config.train.steps}: the run in {workdir} has done {done} '
      'already; use as many or more, or another workdir'
    )
