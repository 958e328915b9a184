"""The exceptions that a user reads as one line."""


class UserError(ValueError):
  """A wrong config field, file or request.

  The message names the field, the value and the remedy; `launch.py` prints it
  as one line and exits with status 2.
  """


class RunError(RuntimeError):
  """A run that cannot continue, such as one that diverges or a full disk.

  The message says what happened, what was kept and what can be done;
  `launch.py` prints it as one line and exits with status 1.
  """


def without_field(error: UserError, path: str) -> str:
  """The message of an error about a model, without `model.path=PATH` before it.

  For a model whose path stands in another field, such as `teacher.path`.
  """
  return str(error).removeprefix(f'model.path={path!r}').lstrip(': ')
