"""What each kind of run refuses before JAX is imported.

JAX takes seconds to import, and a typo should not wait for it. So these
functions need none of it: they check the fields, the paths, the shape of the
model and the first row of each file. What needs the tokenizer, the other rows,
the devices or the weights is refused by the task itself, still before the
weights are read.
"""

from llm.engine.checks import check_generate, check_score


def check_run(config, workdir: str | None) -> None:
  """Refuses a run of one of `CHECKS`, if there is a reason to.

  Raises:
    UserError: naming the field, the file or the row.
  """
  check = CHECKS.get(config.task)
  if check is not None:
    check(config, workdir)


# By `config.task`.
CHECKS = {
  'generate': lambda config, workdir: check_generate(config),
  'score': lambda config, workdir: check_score(config),
}
