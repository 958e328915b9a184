"""What the training of proxies and of policies has in common."""

import types

import optax

from llm.train import optim

CLIP_NORM = 1.0
_WARMUP = 10  # steps


def optimizer(
  rate: float, steps: int, schedule: str
) -> optax.GradientTransformation:
  """AdamW without decay of the weights."""
  config = types.SimpleNamespace(
    name='adamw',
    lr=rate,
    schedule=schedule,
    warmup_steps=min(_WARMUP, steps),
    weight_decay=0.0,
    b1=0.9,
    b2=0.99,
    clip_norm=CLIP_NORM,
  )
  return optim.make_optimizer(config, steps)
