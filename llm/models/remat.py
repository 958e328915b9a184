"""Rematerialisation: what a block keeps for its backward pass."""

from flax import linen as nn
import jax

from llm.errors import UserError
from llm.models.config import REMAT
from llm.models.weights import LINEAR

_POLICIES = {
  'none': None,  # everything
  # Results of linear maps; attention weights, norms and activations are
  # computed again.
  'dots': jax.checkpoint_policies.save_only_these_names(LINEAR),
  # The block's input only.
  'full': jax.checkpoint_policies.nothing_saveable,
}
assert tuple(_POLICIES) == REMAT


def rematerialised(
  module: type[nn.Module],
  name: str,
  *,
  prevent_cse: bool = True,
) -> type[nn.Module]:
  """The module class with the policy of that name.

  Args:
    module: a Linen module class.
    name: one of `REMAT`.
    prevent_cse: False where the module is the body of a loop: the compiler
      does not merge that with its backward pass anyway.

  Raises:
    UserError: no such policy.
  """
  if name not in REMAT:
    raise UserError(f'remat={name!r}: use one of {", ".join(REMAT)}')
  if name == 'none':
    return module
  return nn.remat(module, policy=_POLICIES[name], prevent_cse=prevent_cse)
