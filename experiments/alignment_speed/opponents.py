"""TRL's trainers, stopped after each turn by a callback."""

import tempfile
import time
from typing import Any

from experiments.alignment_speed import rows
from experiments.turns import Requests


def serve(folder: str, settings: dict[str, Any], requests: Requests) -> None:
  """Trains for the steps of each request, until there are no more requests.

  Args:
    folder: of the model.
    settings: as `measure.settings` makes them, with `fused`: which of torch's
      AdamW.
    requests: `{"steps": n}`, answered by their `losses`, `rewards` and
      `seconds`.
  """
  import torch

  torch.set_num_threads(settings['threads'])
  make = _grpo if settings['kind'] == 'grpo' else _dpo
  with tempfile.TemporaryDirectory() as out:
    trainer = make(folder, settings, out)
    trainer.add_callback(_turns(requests))
    trainer.train()


def _turns(requests: Requests):
  from transformers import TrainerCallback

  class Turns(TrainerCallback):
    """Waits for a request before the first step and after each turn."""

    def on_train_begin(self, args, state, control, **kwargs):
      self._incoming = iter(requests)
      self._wait(control)

    def on_log(self, args, state, control, logs, **kwargs):
      if 'loss' not in logs:  # the summary at the end
        return
      self._seen.append((float(logs['loss']), logs.get('reward')))
      if len(self._seen) == self._steps:
        losses, rewards = zip(*self._seen)
        seconds = time.perf_counter() - self._began
        requests.answer(losses=losses, rewards=rewards, seconds=seconds)
        self._wait(control)

    def _wait(self, control):
      request = next(self._incoming, None)
      if request is None:
        control.should_training_stop = True
        return
      self._steps, self._seen = request['steps'], []
      self._began = time.perf_counter()

  return Turns()


def _dpo(folder, settings, out):
  import datasets
  from trl import DPOConfig, DPOTrainer

  args = DPOConfig(
    per_device_train_batch_size=settings['batch_size'],
    precompute_ref_log_probs=settings['kind'] == 'dpo_precomputed',
    beta=0.1,
    max_length=settings['row_tokens'],
    **_shared(settings, out),
  )
  model, tokenizer = _load(folder)
  return DPOTrainer(
    model=model,
    args=args,
    train_dataset=datasets.Dataset.from_list(rows.draw_pairs(settings)),
    processing_class=tokenizer,
  )


def _grpo(folder, settings, out):
  import datasets
  from trl import GRPOConfig, GRPOTrainer

  answers = settings['prompts'] * settings['group_size']
  args = GRPOConfig(
    per_device_train_batch_size=answers,
    num_generations=settings['group_size'],
    max_completion_length=settings['new_tokens'],
    beta=0.0,
    loss_type='grpo',
    shuffle_dataset=False,
    **_shared(settings, out),
  )
  model, tokenizer = _load(folder)
  return GRPOTrainer(
    model=model,
    reward_funcs=lambda completions, **_: list(
      map(rows.even_share, completions)
    ),
    args=args,
    train_dataset=datasets.Dataset.from_list(rows.draw_prompts(settings)),
    processing_class=tokenizer,
  )


def _load(folder):
  import torch
  from transformers import AutoModelForCausalLM, AutoTokenizer

  model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='sdpa'
  )
  return model, AutoTokenizer.from_pretrained(folder)


def _shared(settings, out) -> dict[str, Any]:
  """The settings with which a step of TRL is the same as ours."""
  optim = settings['optim']
  return {
    'output_dir': out,
    'max_steps': settings['all_steps'],
    'learning_rate': optim['lr'],
    'lr_scheduler_type': 'constant',
    'weight_decay': optim['weight_decay'],
    'adam_beta1': optim['b1'],
    'adam_beta2': optim['b2'],
    'max_grad_norm': optim['clip_norm'],
    'optim': 'adamw_torch_fused' if settings['fused'] else 'adamw_torch',
    'train_sampling_strategy': 'sequential',
    'gradient_checkpointing': False,
    'bf16': False,
    'use_cpu': True,
    'report_to': 'none',
    'save_strategy': 'no',
    'logging_steps': 1,
    'disable_tqdm': True,
  }
