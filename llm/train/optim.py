"""Optimizer from a config, as an optax transformation without clipping."""

from typing import Any

import jax
import optax

from llm.errors import UserError
from llm.train import groups as groups_lib
from llm.train.adafactor import scale_by_adafactor
from llm.train.adam8bit import scale_by_adam8bit
from llm.train.checks import check_optim
from llm.train.matrices import path_name
from llm.train.muon import is_muon, scale_by_muon
from llm.train.schedules import make_schedule

_FROZEN, _MATRIX, _OTHER = 'frozen', 'matrix', 'other'


def make_optimizer(
  config: Any, total_steps: int, params: Any = None
) -> optax.GradientTransformation:
  """The optimizer that the config names, with schedule, decay and groups.

  In every one of them the parameters fall by lr · weight_decay · parameter in a
  step, apart from the gradient's own update (decoupled, 1711.05101), and
  `groups` change learning rate and decay by path (`groups.assign_rules`). A
  parameter with a learning rate of 0 has no optimizer state. The updates, where
  m and v are moving means of the gradient and its square:

    adamw      m / sqrt(v), both corrected for their start (1412.6980)
    adamw8bit  the same, moments in 8 bits (`adam8bit`)
    adafactor  relative to the parameter's RMS; no momentum, so b1 and b2 have
               no effect (`adafactor`)
    lion       sign(b1 · m + (1 - b1) · gradient), m by b2 (2302.06675); wants
               a tenth of AdamW's learning rate and ten times its decay
    muon       orthogonal momentum (b1, usually 0.95) for hidden matrices, with
               AdamW's RMS; AdamW (b1, b2) for the rest (`muon`)
    sgd        gradients summed up with momentum b1 (0: the gradient)

  Args:
    config: `name`, `lr`, `schedule`, `warmup_steps`, `weight_decay`, `b1`,
      `b2`, `clip_norm` (checked here, applied by the train step); and, where
      they are not given, `eps` (1e-8, of AdamW), `groups` (none) and the
      fields of `make_schedule`.
    total_steps: optimizer steps of the whole run.
    params: tree of arrays or shapes that groups are checked against at once;
      None: when the optimizer's state is made.

  Raises:
    UserError: a field is invalid, or a group no parameter.
  """
  check_optim(config, total_steps)
  schedule = make_schedule(config, total_steps)
  if params is not None:
    check_params(config, params)
  rules = _make_rules(config)
  return optax.chain(
    _make_core(config, rules),
    _add_decay(rules),
    optax.scale_by_learning_rate(schedule),
    _scale_by_factor(rules),
  )


def check_params(config: Any, params: Any) -> None:
  """Refuses a config whose groups, or whose Muon, have no parameter in a tree.

  Args:
    config: of `make_optimizer`.
    params: tree of arrays or shapes.
  """
  _labels(config, _make_rules(config)(params))


def _make_rules(config):
  """Returns `rules(params)`, a `groups.Rule` for each of them."""
  groups = getattr(config, 'groups', ())
  return lambda tree: groups_lib.assign_rules(tree, groups, config.weight_decay)


def _make_core(config, rules):
  """The update before decay and learning rate; 0 for frozen parameters."""
  b1, b2, eps = config.b1, config.b2, getattr(config, 'eps', 1e-8)
  parts = {_FROZEN: optax.set_to_zero()}
  if config.name == 'adamw8bit':
    parts[_OTHER] = scale_by_adam8bit(b1, b2, eps)
  elif config.name == 'adafactor':
    parts[_OTHER] = scale_by_adafactor()
  elif config.name == 'lion':
    parts[_OTHER] = optax.scale_by_lion(b1, b2)
  elif config.name == 'sgd':
    parts[_OTHER] = optax.trace(b1) if b1 else optax.identity()
  else:  # adamw, and what Muon leaves to it
    parts[_OTHER] = optax.scale_by_adam(b1, b2, eps)
  if config.name == 'muon':
    parts[_MATRIX] = scale_by_muon(b1)
  return optax.partition(parts, lambda tree: _labels(config, rules(tree)))


def _labels(config, rules):
  """Which part of the core updates each parameter."""

  def label(path, rule):
    if rule.lr_factor == 0.0:
      return _FROZEN
    if config.name == 'muon' and is_muon(path_name(path)):
      return _MATRIX
    return _OTHER

  labels = jax.tree_util.tree_map_with_path(label, rules)
  found = set(jax.tree.leaves(labels))
  if found == {_FROZEN}:
    raise UserError(
      f'optim.groups={config.groups!r}: every parameter has lr_factor 0; leave '
      'one that is trained'
    )
  if config.name == 'muon' and _MATRIX not in found:
    raise UserError(
      "optim.name='muon': none of the trained parameters is a kernel of a "
      'hidden layer, which is all that Muon is for; use adamw'
    )
  return labels


def _add_decay(rules):
  def update(updates, params):
    return jax.tree.map(
      lambda u, p, r: u + r.weight_decay * p if r.weight_decay else u,
      updates,
      params,
      rules(params),
    )

  return optax.stateless(update)


def _scale_by_factor(rules):
  def update(updates, params):
    return jax.tree.map(
      lambda u, r: u if r.lr_factor == 1.0 else r.lr_factor * u,
      updates,
      rules(params),
    )

  return optax.stateless(update)
