"""Optimizers beside torch's (and Lion's paper) over 15 steps.

The weights of a small transformer layer in Hugging Face's layout, one matrix
each for query, key and value, are driven by the same gradients as our fused
kernels. Gradients are a function of the weights, so errors would add up.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.train import optim

torch = pytest.importorskip('torch')

STEPS = 15
KV_HEADS, GROUP, HEAD, EMBED, WIDTH = 2, 2, 20, 36, 40


def _config(**changes):
  fields = dict(
    name='adamw',
    lr=0.01,
    schedule='constant',
    warmup_steps=0,
    weight_decay=0.1,
    b1=0.9,
    b2=0.95,
    clip_norm=0.0,
  )
  return types.SimpleNamespace(**(fields | changes))


def _weights():
  """Torch's layout: [out, in] each, and one vector that does not decay."""
  rng = np.random.default_rng(0)
  shapes = {
    'q': (KV_HEADS * GROUP * HEAD, EMBED),
    'k': (KV_HEADS * HEAD, EMBED),
    'v': (KV_HEADS * HEAD, EMBED),
    'o': (EMBED, KV_HEADS * GROUP * HEAD),
    'gate': (WIDTH, EMBED),
    'up': (WIDTH, EMBED),
    'down': (EMBED, WIDTH),
    'scale': (EMBED,),
  }
  return {k: np.float32(rng.standard_normal(s)) for k, s in shapes.items()}


def _ours(w):
  q = w['q'].reshape(KV_HEADS, GROUP, HEAD, EMBED)
  k, v = (w[n].reshape(KV_HEADS, 1, HEAD, EMBED) for n in 'kv')
  tree = {
    'attn': {
      'qkv': {'kernel': np.concatenate([q, k, v], axis=1)},
      'o': {'kernel': w['o'].reshape(EMBED, KV_HEADS * GROUP, HEAD)},
    },
    'mlp': {
      'gate_up': {'kernel': np.stack([w['gate'], w['up']])},
      'down': {'kernel': w['down']},
    },
    'norm': {'scale': w['scale']},
  }
  return jax.tree.map(jnp.asarray, tree)


def _theirs(tree):
  qkv = np.asarray(tree['attn']['qkv']['kernel'])
  gate, up = np.asarray(tree['mlp']['gate_up']['kernel'])
  return {
    'q': qkv[:, :GROUP].reshape(-1, EMBED),
    'k': qkv[:, GROUP].reshape(-1, EMBED),
    'v': qkv[:, GROUP + 1].reshape(-1, EMBED),
    'o': np.asarray(tree['attn']['o']['kernel']).reshape(EMBED, -1),
    'gate': gate,
    'up': up,
    'down': np.asarray(tree['mlp']['down']['kernel']),
    'scale': np.asarray(tree['norm']['scale']),
  }


def _gradient(name, w, step):
  """A gradient that depends on weight and step; some entries are tiny."""
  spread = np.float32(10.0) ** np.linspace(-3, 0, w.shape[-1], dtype=np.float32)
  noise = np.random.default_rng([step, len(name), w.size]).standard_normal(
    w.shape
  )
  return np.float32(spread * (0.3 * w + noise))


def _run_ours(**changes):
  tree = _ours(_weights())
  tx = optim.make_optimizer(_config(**changes), STEPS, tree)
  state = tx.init(tree)
  update = jax.jit(tx.update)
  for step in range(STEPS):
    w = _theirs(tree)
    grads = _ours({k: _gradient(k, x, step) for k, x in w.items()})
    updates, state = update(grads, state, tree)
    tree = jax.tree.map(jnp.add, tree, updates)
  return _theirs(tree)


def _run_torch(make, weights=None):
  """`make(matrices, vectors)` returns the optimizers of the two groups."""
  w = {k: torch.tensor(x) for k, x in (weights or _weights()).items()}
  matrices = [x for x in w.values() if x.ndim == 2]
  vectors = [x for x in w.values() if x.ndim == 1]
  optimizers = make(matrices, vectors)
  for step in range(STEPS):
    for k, x in w.items():
      x.grad = torch.tensor(_gradient(k, x.numpy(), step))
    for optimizer in optimizers:
      optimizer.step()
  return {k: x.numpy() for k, x in w.items()}


def _assert_close(got, want, tolerance=2e-6):
  start = _weights()
  for name, x in want.items():
    assert np.abs(x - start[name]).max() > 1e-3, f'{name} did not move'
    np.testing.assert_allclose(
      got[name], x, rtol=tolerance, atol=tolerance, err_msg=name
    )


def test_sgd():
  def make(matrices, vectors):
    return [torch.optim.SGD(matrices + vectors, lr=0.01, momentum=0.9)]

  _assert_close(_run_ours(name='sgd', weight_decay=0.0), _run_torch(make))


def test_adamw():
  def make(matrices, vectors):
    groups = [
      {'params': matrices, 'weight_decay': 0.1},
      {'params': vectors, 'weight_decay': 0.0},
    ]
    return [torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)]

  _assert_close(_run_ours(), _run_torch(make))


def test_adafactor():
  def make(matrices, vectors):
    groups = [
      {'params': matrices, 'weight_decay': 0.1},
      {'params': vectors, 'weight_decay': 0.0},
    ]
    # Without its own limit on the rate, which 0.01 does not reach here.
    return [torch.optim.Adafactor(groups, lr=0.01, eps=(1e-15, 1e-3))]

  _assert_close(_run_ours(name='adafactor'), _run_torch(make))


def test_lion():
  # Algorithm 2 of 2302.06675.
  want = _weights()
  momentum = {k: np.zeros_like(x) for k, x in want.items()}
  for step in range(STEPS):
    for k, w in want.items():
      g = _gradient(k, w, step)
      decay = 0.1 if w.ndim == 2 else 0.0
      direction = np.sign(0.9 * momentum[k] + (1 - 0.9) * g)
      want[k] = np.float32(w - 0.01 * (direction + decay * w))
      momentum[k] = np.float32(0.95 * momentum[k] + (1 - 0.95) * g)
  _assert_close(_run_ours(name='lion'), want)


def test_muon(monkeypatch):
  # torch rounds to bfloat16 inside; in float32 the two can be compared.
  monkeypatch.setattr(torch.Tensor, 'bfloat16', lambda x: x.clone())

  def make(matrices, vectors):
    return [
      torch.optim.Muon(
        matrices,
        lr=0.01,
        weight_decay=0.1,
        momentum=0.95,
        adjust_lr_fn='match_rms_adamw',
      ),
      torch.optim.AdamW(
        vectors, lr=0.01, betas=(0.95, 0.95), eps=1e-8, weight_decay=0.0
      ),
    ]

  _assert_close(_run_ours(name='muon', b1=0.95), _run_torch(make), 1e-5)
