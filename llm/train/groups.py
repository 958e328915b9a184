"""Weight decay and learning rate by a parameter's path."""

import dataclasses
import re
from typing import Any

import jax

from llm.errors import UserError
from llm.train.matrices import is_matrix, path_name


@dataclasses.dataclass(frozen=True)
class Rule:
  """What the optimizer does to one parameter.

  Attributes:
    lr_factor: times the schedule's learning rate; 0 freezes the parameter.
    weight_decay: w falls by lr · weight_decay · w in every step.
  """

  lr_factor: float
  weight_decay: float


def assign_rules(params: Any, groups: Any, weight_decay: float) -> Any:
  """A `Rule` for each parameter.

  Without a group, matrices (kernels, embeddings, LoRA's factors) decay by
  `weight_decay`; norm scales, biases and DoRA's magnitudes do not. The first
  group whose pattern is found in a path (`re.search`) replaces what it names
  and leaves the rest. Trace: groups
  `(('norm/|bias', {'lr_factor': 0.5}), ('layers_0/', {'lr_factor': 0}))` halve
  the learning rate of layer 0's norms too, and freeze its kernels.

  Args:
    params: tree of arrays or shapes.
    groups: tuple of (pattern, {'lr_factor': float, 'weight_decay': float}),
      each key optional; `checks.check_groups` has passed them.
    weight_decay: of matrices without a group of their own.

  Returns:
    The tree of params with a `Rule` at each leaf.

  Raises:
    UserError: a group gets no parameter.
  """
  paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
  taken = {
    path: next((i for i, g in enumerate(groups) if re.search(g[0], path)), None)
    for path in paths
  }
  for i, (pattern, _) in enumerate(groups):
    if i in taken.values():
      continue
    if any(re.search(pattern, path) for path in paths):
      remedy = 'earlier groups take all that it matches; put it before them'
    else:
      remedy = f'it matches no parameter; a path is e.g. {paths[-1]!r}'
    raise UserError(f'optim.groups: pattern {pattern!r}: {remedy}')

  def rule(path, _):
    path = path_name(path)
    changes = {} if taken[path] is None else groups[taken[path]][1]
    decay = weight_decay if is_matrix(path) else 0.0
    return Rule(
      changes.get('lr_factor', 1.0), changes.get('weight_decay', decay)
    )

  return jax.tree_util.tree_map_with_path(rule, params)
