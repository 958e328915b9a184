"""TRL's own loss code, called without a trainer, a model or a tokenizer.

Each function takes torch arrays of log-probabilities (or rewards) and runs the
method of the TRL trainer on an object that has just what the method reads.
"""

import collections
import types

import torch
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer import dpo_trainer, kto_trainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.rloo_trainer import RLOOTrainer


class _NoCheckpointing:
  def __init__(self, *args):
    pass

  def __enter__(self):
    return self

  def __exit__(self, *args):
    return False


# They look for real models.
for module in (dpo_trainer, kto_trainer):
  module.disable_gradient_checkpointing = _NoCheckpointing
  module.is_peft_model = lambda model: False


def _accelerator():
  same = lambda x, **kw: x
  return types.SimpleNamespace(
    device=torch.device('cpu'),
    gather=same,
    gather_for_metrics=same,
    reduce=same,
    num_processes=1,
    sync_gradients=True,
  )


def _stub(**fields):
  metrics = collections.defaultdict(lambda: collections.defaultdict(list))
  common = dict(
    accelerator=_accelerator(),
    model=types.SimpleNamespace(training=True),
    aux_loss_enabled=False,
    _metrics=metrics,
    _total_train_tokens=0,
    _tp_size=1,
  )
  return types.SimpleNamespace(**(common | fields))


def _outputs(logprobs):
  """What TRL's fused head returns, for given log-probabilities [N, T]."""
  zeros = torch.zeros_like(logprobs)
  return types.SimpleNamespace(
    log_probs=logprobs,
    entropy=zeros,
    mean_logits=zeros,
    is_top1=zeros.bool(),
    log_sum_sq_probs=zeros,
  )


def dpo(logprobs, ref_logprobs, mask, *, losses, beta, **settings):
  """DPOTrainer's loss of [2P, T] log-probabilities, chosen first."""
  fields = dict(
    ref_model=lambda **kw: _outputs(ref_logprobs),
    ld_alpha=None,
    precompute_ref_logps=False,
    f_divergence_type='reverse_kl',
    f_alpha_divergence_coef=0.5,
    loss_types=list(losses),
    loss_weights=[1.0] * len(losses),
    beta=beta,
    label_smoothing=0.0,
    use_weighting=False,
    args=types.SimpleNamespace(
      discopop_tau=0.05, gradient_checkpointing_kwargs=None
    ),
  )
  first = torch.zeros_like(mask[:, :1])  # the prompt's last token
  mask = torch.cat([first, mask], dim=1)
  inputs = {
    'input_ids': torch.zeros_like(mask),
    'attention_mask': torch.ones_like(mask),
    'completion_mask': mask,
  }
  model = lambda **kw: _outputs(logprobs)
  stub = _stub(**(fields | settings))
  return DPOTrainer._compute_loss(stub, model, inputs, False)


def kto(logprobs, ref, kl_logprobs, ref_kl, mask, label, **settings):
  """KTOTrainer's loss of [P, T] log-probabilities."""

  def model_of(matched, mismatched):
    queue = [mismatched, matched]  # the order in which it calls the policy
    return lambda **kw: _outputs(queue.pop(0))

  fields = dict(
    ref_model=model_of(ref, ref_kl),
    calculate_KL=True,
    precompute_ref_logps=False,
    loss_type='kto',
    args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
  )
  stub = _stub(**(fields | settings))
  stub._compute_kl_logps = types.MethodType(KTOTrainer._compute_kl_logps, stub)
  first = torch.zeros_like(mask[:, :1])
  mask = torch.cat([first, mask], dim=1)
  ids, ones = torch.zeros_like(mask), torch.ones_like(mask)
  inputs = {
    'input_ids': ids,
    'attention_mask': ones,
    'completion_mask': mask,
    'KL_input_ids': ids,
    'KL_attention_mask': ones,
    'KL_completion_mask': mask,
    'label': label,
  }
  model = model_of(logprobs, kl_logprobs)
  return KTOTrainer._compute_loss(stub, model, inputs, False)


def cpo(chosen, rejected, **settings):
  """CPOTrainer's preference part, float[P]."""
  fields = dict(alpha=0.0, label_smoothing=0.0, loss_type='sigmoid')
  stub = _stub(**(fields | settings))
  return CPOTrainer.cpo_loss(stub, chosen, rejected)[0]


def orpo(chosen, rejected, beta):
  """ORPOTrainer's odds-ratio part, float[P], to be subtracted."""
  stub = _stub(beta=beta)
  return ORPOTrainer.odds_ratio_loss(stub, chosen, rejected)[0]


def reward(chosen, rejected, margin, center):
  """RewardTrainer's loss of float[P] rewards."""
  stub = _stub(args=types.SimpleNamespace(center_rewards_coefficient=center))
  logits = torch.cat([chosen, rejected])[:, None]
  model = lambda **kw: types.SimpleNamespace(logits=logits)
  inputs = {'attention_mask': torch.ones(1)}
  if margin is not None:
    inputs['margin'] = margin
  return RewardTrainer.compute_loss(stub, model, inputs)


def _policy_inputs(mask, advantages):
  prompt = torch.zeros((mask.shape[0], 1), dtype=torch.long)
  return {
    'prompt_ids': prompt,
    'prompt_mask': torch.ones_like(prompt),
    'completion_ids': torch.zeros_like(mask),
    'completion_mask': mask,
    'advantages': advantages,
    'num_items_in_batch': mask.sum(),
  }


def _policy_stub(logprobs, entropy, **settings):
  fields = dict(
    _get_per_token_logps_and_entropies=lambda *a, **kw: (
      logprobs,
      entropy,
      None,
    ),
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    importance_sampling_level='token',
    beta=0.0,
    loss_type='dapo',
    epsilon_low=0.2,
    epsilon_high=0.2,
    use_vllm=False,
    vllm_importance_sampling_correction=False,
    current_gradient_accumulation_steps=1,
    _entropy_bonus_enabled=False,
    use_adaptive_entropy=False,
    args=types.SimpleNamespace(
      use_bias_correction_kl=False, delta=None, steps_per_generation=1
    ),
  )
  return _stub(**(fields | settings))


def grpo(logprobs, old, ref, entropy, mask, advantages, **settings):
  """GRPOTrainer's loss of [B, T] log-probabilities."""
  stub = _policy_stub(logprobs, entropy, **settings)
  inputs = _policy_inputs(mask, advantages)
  inputs |= {'old_per_token_logps': old, 'ref_per_token_logps': ref}
  return GRPOTrainer._compute_loss(stub, None, inputs)


def rloo(logprobs, old, entropy, mask, advantages, **settings):
  """RLOOTrainer's loss of [B, T] log-probabilities."""
  stub = _policy_stub(logprobs, entropy, **settings)
  inputs = _policy_inputs(mask, advantages)
  inputs['old_logps'] = (old * mask).sum(1)
  return RLOOTrainer._compute_loss(stub, None, inputs)
