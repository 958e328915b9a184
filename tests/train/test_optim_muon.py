"""Muon against singular value decompositions of the matrices it should see."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from llm.models.transformer import init_params
from llm.train import matrices, muon, optim
from tests.models import tiny


def _random_params(shape, seed):
  rng = np.random.default_rng(seed)
  tree = jax.eval_shape(lambda: init_params(shape, jax.random.key(0)))
  return jax.tree.map(
    lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), tree
  )


def _svd_polar(x):
  u, _, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
  return u, vt


def test_orthogonalize_keeps_the_singular_vectors():
  x = jax.random.normal(jax.random.key(0), (3, 24, 40))
  x = x * jnp.logspace(-1, 1, 40)  # singular values far from equal
  for y in (x, jnp.swapaxes(x, 1, 2)):
    out = np.asarray(muon.orthogonalize(y), np.float64)
    for given, got in zip(y, out, strict=True):
      u, vt = _svd_polar(given)
      core = u.T @ got @ vt.T  # diagonal, if the vectors are the same
      values = np.diag(core)
      assert np.abs(core - np.diag(values)).max() < 1e-3
      assert values.min() > 0.6 and values.max() < 1.25


def test_of_a_zero_gradient_is_zero():
  assert not np.asarray(muon.orthogonalize(jnp.zeros((1, 4, 6)))).any()


def _projections(attn, num_kv_heads):
  """q, k, v as Hugging Face stores them: [heads · H, D] each."""
  kernel = np.asarray(attn['qkv']['kernel'])
  embed = kernel.shape[-1]
  q = np.concatenate([kernel[k, :-2] for k in range(num_kv_heads)])
  return [
    q.reshape(-1, embed),
    kernel[:, -2].reshape(-1, embed),
    kernel[:, -1].reshape(-1, embed),
  ]


def test_every_matrix_of_a_model_is_orthogonalized_by_itself():
  shape = tiny.config('experts', num_layers=1, tie_embeddings=False)
  params, grads = _random_params(shape, 0), _random_params(shape, 1)
  config = types.SimpleNamespace(
    name='muon',
    lr=1.0,
    schedule='constant',
    warmup_steps=0,
    weight_decay=0.0,
    b1=0.95,
    b2=0.99,
    clip_norm=0.0,
  )
  tx = optim.make_optimizer(config, 10, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  # AdamW's first step: the sign of the gradient.
  for other in (
    lambda t: t['embedder']['embedding'],
    lambda t: t['lm_head']['kernel'],
    lambda t: t['layers_0']['pre_mlp_norm']['scale'],
  ):
    np.testing.assert_allclose(
      other(updates), -np.sign(other(grads)), rtol=1e-4
    )
  layer, grad = updates['layers_0'], grads['layers_0']
  pairs = list(
    zip(
      _projections(layer['attn'], 2), _projections(grad['attn'], 2), strict=True
    )
  )
  pairs.append(
    tuple(
      np.asarray(t['attn']['o']['kernel']).reshape(32, -1)
      for t in (layer, grad)
    )
  )
  for expert in range(4):
    for part in range(2):
      pairs.append(
        tuple(
          t['moe']['gate_up']['kernel'][expert, part] for t in (layer, grad)
        )
      )
    pairs.append(
      tuple(t['moe']['down']['kernel'][expert] for t in (layer, grad))
    )
  for update, gradient in pairs:
    u, vt = _svd_polar(gradient)
    values = np.diag(u.T @ -np.asarray(update, np.float64) @ vt.T)
    values = values / (0.2 * max(update.shape) ** 0.5)
    assert values.min() > 0.3 and values.max() < 1.25
    # The RMS that 2502.16982 scales to: that of AdamW.
    rms = np.sqrt(np.mean(np.square(update)))
    want = 0.2 * np.sqrt(np.mean(values**2))
    np.testing.assert_allclose(rms, want, rtol=0.02)


def test_split_and_join_are_inverse():
  shape = tiny.config('experts', qkv_bias=True)
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    _random_params(shape, 0)
  ):
    path = '/'.join(k.key for k in path)
    for name, x in ((path, leaf), (f'layers/{path}', np.stack([leaf, -leaf]))):
      parts = matrices.split(name, x)
      assert sum(part.size for part in parts) == x.size
      np.testing.assert_array_equal(matrices.join(name, parts, x.shape), x)
