"""The other system: a plain training loop of `transformers` on torch."""

from typing import Any

import numpy as np

from experiments.training_speed.rows import draw_rows


def transformers(folder: str, settings: dict[str, Any]):
  """torch's AdamW as it is by default (foreach)."""
  return _trainer(folder, settings, None)


def transformers_fused(folder: str, settings: dict[str, Any]):
  """torch's AdamW with one fused kernel for each parameter."""
  return _trainer(folder, settings, True)


def _trainer(folder, settings, fused):
  """Returns `train(steps) -> losses`, which continues where it stopped.

  Batches are torch tensors before the clock starts.
  """
  import torch
  from transformers import AutoModelForCausalLM

  torch.set_num_threads(settings['threads'])
  model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='sdpa', use_cache=False
  ).train()
  optim = settings['optim']
  decayed = [p for p in model.parameters() if p.ndim > 1]
  rest = [p for p in model.parameters() if p.ndim == 1]
  tx = torch.optim.AdamW(
    [
      {'params': decayed, 'weight_decay': optim['weight_decay']},
      {'params': rest, 'weight_decay': 0.0},
    ],
    lr=optim['lr'],
    betas=(optim['b1'], optim['b2']),
    fused=fused,
  )
  tokens, mask = draw_rows(settings)
  labels = np.where(mask, tokens, -100)
  shape = (-1, settings['batch_size'], settings['tokens'])
  tokens = torch.from_numpy(tokens.reshape(shape)).long()
  labels = torch.from_numpy(labels.reshape(shape)).long()
  done = 0

  def train(steps):
    nonlocal done
    losses = []
    for _ in range(steps):
      batch = done % len(tokens)
      loss = model(input_ids=tokens[batch], labels=labels[batch]).loss
      loss.backward()
      if optim['clip_norm']:
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim['clip_norm'])
      tx.step()
      tx.zero_grad(set_to_none=True)
      losses.append(loss.item())
      done += 1
    return losses

  return train
