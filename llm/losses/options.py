"""Names and options of losses; nothing here needs JAX.

A wrong name or value in a config is refused before JAX is imported. So names
and checks are in this module, and the losses use them too.
"""

from typing import Any

# The options of each preference loss: keywords of the function `NAME_loss` of
# `preference.py`.
PREFERENCE = {
  'dpo': ('beta',),
  'cdpo': ('beta', 'label_smoothing'),
  'robust_dpo': ('beta', 'label_smoothing'),
  'hinge': ('beta',),
  'ipo': ('beta', 'logprobs'),
  'dpo_norm': ('beta',),
  'rpo': ('beta', 'alpha', 'nll'),
  'simpo': ('beta', 'label_smoothing', 'gamma', 'gamma_ratio'),
  'cpo': ('beta', 'label_smoothing', 'alpha'),
  'orpo': ('beta',),
}
# Of rated completions rather than pairs: `kto.kto_loss`.
KTO = ('beta', 'desirable_weight', 'undesirable_weight')
# Those that read no reference model.
REFERENCE_FREE = ('simpo', 'cpo', 'orpo')
# Estimators of a KL (`shaping.kl_estimate`) and means over tokens
# (`reductions.reduce`).
ESTIMATORS = ('k1', 'k2', 'k3')
REDUCTIONS = ('token', 'sequence', 'constant', 'group')


def check_options(**options: Any) -> None:
  """Refuses values that a preference loss cannot take.

  Args:
    **options: some of the keywords in `PREFERENCE`; those that are not checked
      here are numbers of any size.

  Raises:
    ValueError: label smoothing is not the share of wrong labels, below a half;
      `logprobs` or `nll` is another word than it can be; two margins are given.
  """
  smoothing = options.get('label_smoothing', 0.0)
  if not 0.0 <= smoothing < 0.5:
    raise ValueError(
      f'label_smoothing={smoothing} must be at least 0 and below 0.5: it is '
      'the share of pairs that are labelled the wrong way round'
    )
  for name, (one, other) in (
    ('logprobs', ('mean', 'sum')),
    ('nll', ('token', 'sequence')),
  ):
    if name in options and options[name] not in (one, other):
      raise ValueError(f'{name}={options[name]!r} must be {one!r} or {other!r}')
  gamma, ratio = options.get('gamma'), options.get('gamma_ratio')
  if gamma is not None and ratio is not None:
    raise ValueError(
      f'gamma={gamma} and gamma_ratio={ratio} both name the margin; pass one '
      'of them'
    )
