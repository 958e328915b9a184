"""Preference losses beside TRL's own code: value and gradient, float32."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.losses import preference, sequences

torch = pytest.importorskip('torch')
pytest.importorskip('trl')
trl_stubs = importlib.import_module('tests.parity.trl_stubs')

P, T = 5, 9


def _case(seed):
  """Token log-probabilities [2P, T], chosen first, of different lengths."""
  rng = np.random.default_rng(seed)
  shape = (2 * P, T)
  lengths = rng.integers(1, T - 2, 2 * P)
  prompts = rng.integers(0, 3, 2 * P)
  place = np.arange(T)[None] - prompts[:, None]
  mask = (place >= 0) & (place < lengths[:, None])
  logp = -rng.uniform(0.05, 3.0, shape).astype(np.float32)
  ref = logp + rng.normal(size=shape).astype(np.float32) / 2
  return logp, np.minimum(ref, -0.01).astype(np.float32), mask


def _ours(f, logp, ref, mask, names, settings, tail=None):
  """Mean loss and its gradient by the [2P, T] log-probabilities."""

  def loss(logp):
    parts = {}
    for kind, values in (('', logp), ('ref_', ref)):
      sums, tokens = sequences.sequence_logprobs(
        jnp.asarray(values), jnp.asarray(mask), tail
      )
      parts |= {f'{kind}chosen': sums[:P], f'{kind}rejected': sums[P:]}
    parts |= {'chosen_tokens': tokens[:P], 'rejected_tokens': tokens[P:]}
    loss_sum, weight_sum, _ = f(*(parts[n] for n in names), **settings)
    return loss_sum / weight_sum

  value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logp))
  return np.asarray(value), np.asarray(grad)


def _theirs(f, logp, mask):
  """The same of TRL's loss, f(log-probabilities under the mask)."""
  leaf = torch.tensor(logp, requires_grad=True)
  value = f(leaf * torch.tensor(mask))
  value.backward()
  return value.detach().numpy(), leaf.grad.numpy()


def _assert_equal(ours, theirs):
  for a, b in zip(ours, theirs):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


REF = ('chosen', 'rejected', 'ref_chosen', 'ref_rejected')
LENGTHS = ('chosen_tokens', 'rejected_tokens')
# name: (function, arrays, settings, TRL's losses, TRL's settings)
DPO = {
  'dpo': (preference.dpo_loss, REF, dict(beta=0.3), ['sigmoid'], {}),
  'hinge': (preference.hinge_loss, REF, dict(beta=0.3), ['hinge'], {}),
  'robust': (
    preference.robust_dpo_loss,
    REF,
    dict(beta=0.3, label_smoothing=0.2),
    ['robust'],
    dict(label_smoothing=0.2),
  ),
  'ipo': (preference.ipo_loss, REF + LENGTHS, dict(beta=0.3), ['ipo'], {}),
  'dpo_norm': (
    preference.dpo_norm_loss,
    REF + LENGTHS,
    dict(beta=0.3),
    ['sigmoid_norm'],
    {},
  ),
  'rpo': (
    preference.rpo_loss,
    (*REF, 'chosen_tokens'),
    dict(beta=0.3, alpha=0.7),
    ['sigmoid', 'sft'],
    dict(loss_weights=[1.0, 0.7]),
  ),
}


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('name', DPO)
def test_losses_of_dpo_trainer(name, seed):
  f, names, settings, losses, more = DPO[name]
  logp, ref, mask = _case(seed)
  theirs = _theirs(
    lambda x: trl_stubs.dpo(
      x,
      torch.tensor(ref * mask),
      torch.tensor(mask.astype(np.int64)),
      losses=losses,
      beta=0.3,
      **more,
    ),
    logp,
    mask,
  )
  _assert_equal(_ours(f, logp, ref, mask, names, settings), theirs)


@pytest.mark.parametrize('alpha', [0.0, 0.4])
def test_ld_dpo(alpha):
  logp, ref, mask = _case(2)
  shared = np.minimum(mask[:P].sum(1), mask[P:].sum(1))
  tail = sequences.tail_weights(
    jnp.asarray(mask), jnp.asarray(np.tile(shared, 2)), alpha
  )
  theirs = _theirs(
    lambda x: trl_stubs.dpo(
      x,
      torch.tensor(ref * mask),
      torch.tensor(mask.astype(np.int64)),
      losses=['sigmoid'],
      beta=0.3,
      ld_alpha=alpha,
    ),
    logp,
    mask,
  )
  f, names, settings, _, _ = DPO['dpo']
  _assert_equal(_ours(f, logp, ref, mask, names, settings, tail), theirs)


def _split(x):
  return x[:P].sum(1), x[P:].sum(1)


@pytest.mark.parametrize('seed', range(2))
def test_cdpo_and_summed_ipo_by_cpo_of_log_ratios(seed):
  logp, ref, mask = _case(seed)
  fixed = torch.tensor(ref * mask)

  def ratios(x):
    return _split(x - fixed)

  theirs = _theirs(
    lambda x: trl_stubs.cpo(*ratios(x), beta=0.3, label_smoothing=0.2).mean(),
    logp,
    mask,
  )
  settings = dict(beta=0.3, label_smoothing=0.2)
  ours = _ours(preference.cdpo_loss, logp, ref, mask, REF, settings)
  _assert_equal(ours, theirs)
  theirs = _theirs(
    lambda x: trl_stubs.cpo(*ratios(x), beta=0.3, loss_type='ipo').mean(),
    logp,
    mask,
  )
  settings = dict(beta=0.3, logprobs='sum')
  ours = _ours(preference.ipo_loss, logp, ref, mask, REF, settings)
  _assert_equal(ours, theirs)


FREE = ('chosen', 'rejected', *LENGTHS)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_simpo(smoothing):
  logp, ref, mask = _case(3)
  n = torch.tensor(mask.sum(1), dtype=torch.float32)

  def loss(x):
    mean = x.sum(1) / n
    return trl_stubs.cpo(
      mean[:P],
      mean[P:],
      beta=2.0,
      loss_type='simpo',
      simpo_gamma=0.7,
      label_smoothing=smoothing,
    ).mean()

  settings = dict(beta=2.0, gamma=0.7, label_smoothing=smoothing)
  ours = _ours(preference.simpo_loss, logp, ref, mask, FREE, settings)
  _assert_equal(ours, _theirs(loss, logp, mask))


def test_cpo():
  logp, ref, mask = _case(4)

  def loss(x):
    nll = -x[:P].sum() / int(mask[:P].sum())
    return trl_stubs.cpo(*_split(x), beta=0.3).mean() + 0.5 * nll

  settings = dict(beta=0.3, alpha=0.5)
  names = ('chosen', 'rejected', 'chosen_tokens')
  ours = _ours(preference.cpo_loss, logp, ref, mask, names, settings)
  _assert_equal(ours, _theirs(loss, logp, mask))


@pytest.mark.parametrize('with_prompt', [True, False])
def test_orpo(with_prompt):
  logp, ref, mask = _case(5)
  n = torch.tensor(mask.sum(1), dtype=torch.float32)
  prompt = -np.arange(1.0, P + 1, dtype=np.float32)
  tokens = np.arange(2.0, P + 2, dtype=np.float32)
  settings = dict(beta=0.3)
  extra, count = 0.0, 0
  if with_prompt:
    extra, count = float(prompt.sum()), int(tokens.sum())
    settings |= dict(
      prompt=jnp.asarray(prompt), prompt_tokens=jnp.asarray(tokens)
    )

  def loss(x):
    mean = x.sum(1) / n
    nll = -(x[:P].sum() + extra) / (int(mask[:P].sum()) + count)
    return nll - trl_stubs.orpo(mean[:P], mean[P:], 0.3).mean()

  ours = _ours(preference.orpo_loss, logp, ref, mask, FREE, settings)
  _assert_equal(ours, _theirs(loss, logp, mask))


@pytest.mark.parametrize('labels', ['mixed', 'desirable', 'undesirable'])
@pytest.mark.parametrize('rise', [0.2, -0.2])
def test_kto(labels, rise):
  logp, ref, mask = _case(6)
  label = {
    'mixed': np.arange(2 * P) % 3 == 0,
    'desirable': np.ones(2 * P, bool),
    'undesirable': np.zeros(2 * P, bool),
  }[labels]
  # The mismatched answers; their KL estimate is above or below 0.
  kl_ref = np.roll(ref, 1, axis=0)
  kl_logp = kl_ref + np.float32(rise)
  settings = dict(beta=0.3, desirable_weight=1.2, undesirable_weight=0.8)
  flat = lambda x: torch.tensor(x * mask)
  theirs = _theirs(
    lambda x: trl_stubs.kto(
      x,
      flat(ref),
      flat(kl_logp),
      flat(kl_ref),
      torch.tensor(mask.astype(np.int64)),
      torch.tensor(label),
      **settings,
    ),
    logp,
    mask,
  )

  def loss(x):
    of = lambda y: sequences.sequence_logprobs(
      jnp.asarray(y), jnp.asarray(mask)
    )[0]
    z = preference.kto_kl(of(kl_logp), of(kl_ref))
    loss_sum, weight_sum, _ = preference.kto_loss(
      of(x), of(ref), jnp.asarray(label), z, **settings
    )
    return loss_sum / weight_sum

  _assert_equal(jax.value_and_grad(loss)(jnp.asarray(logp)), theirs)
