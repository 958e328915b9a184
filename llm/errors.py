"""The one exception for input that a user can mend."""


class UserError(ValueError):
  """A wrong config field, file or request.

  The message names the field, the value and the remedy; `launch.py` prints it
  as one line and exits with status 2.
  """
