"""A model of packed weights is the model of the same weights as floats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.decode.generate import generate
from llm.decode.sampling_params import SamplingParams
from llm.decode.score import score
from llm.errors import UserError
from llm.losses.chunked import (
  chunked_cross_entropy_loss,
  chunked_logprobs_and_entropy,
)
from llm.losses.distill import chunked_generalized_jsd_loss
from llm.models import lora as lora_lib
from llm.models.lora_config import LoraConfig
from llm.models.transformer import Transformer, output_weight, stack_layers
from tests.models import tiny
from tests.models.packed import pack_all, unpack_all

LORA = {
  'plain': LoraConfig(
    rank=3, targets=('q_proj', 'v_proj', 'o_proj', 'down_proj')
  ),
  'dora': LoraConfig(
    rank=3, targets=('q_proj', 'up_proj', 'lm_head'), dora=True
  ),
}


@functools.cache
def _models(kind, scan=False, tied=False):
  """(model, packed parameters, the same as floats)."""
  model, params = tiny.build(kind, tie_embeddings=tied)
  if scan:
    params = stack_layers(params, model.config)
  packed = pack_all(params)
  return Transformer(model.config, scan_layers=scan), packed, unpack_all(packed)


def _close(got, want, bound=2e-6):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = np.abs(w).max()
    assert scale > 0
    np.testing.assert_allclose(g, w, rtol=0, atol=bound * scale)


def _hidden(model, params, tokens):
  return model.apply({'params': params}, tokens, method='trunk')[0]


@pytest.mark.parametrize(
  ('kind', 'scan', 'tied'),
  [('dense', False, True), ('dense', True, False), ('experts', False, False)],
)
def test_logits(kind, scan, tied):
  model, packed, floats = _models(kind, scan, tied)
  # Alone, few and many: the float product takes another way for each.
  inputs = [tiny.tokens(*shape) for shape in ((1, 1), (2, 9), (2, 70))]

  @jax.jit
  def logits(*trees):
    apply = lambda params, tokens: model.apply({'params': params}, tokens)[0]
    return [[apply(tree, tokens) for tokens in inputs] for tree in trees]

  _close(*logits(packed, floats))


@pytest.mark.slow
def test_generation_and_scores():
  model, packed, floats = _models('local_global')
  prompts = [row.tolist() for row in tiny.tokens(2, 7)]
  sampling = SamplingParams(max_new_tokens=12, temperature=0.0, logprobs=0)
  got, want = (
    generate(model, params, prompts, [sampling] * 2)
    for params in (packed, floats)
  )
  for g, w in zip(got, want, strict=True):
    assert len(set(g.token_ids)) > 2
    assert g.token_ids == w.token_ids
    np.testing.assert_allclose(g.logprobs, w.logprobs, atol=1e-5)
  rows = [
    [*prompt, *answer.token_ids]
    for prompt, answer in zip(prompts, got, strict=True)
  ]
  scores = score(model, packed, rows)
  for g, w in zip(scores, score(model, floats, rows), strict=True):
    np.testing.assert_allclose(g, w, atol=1e-5)
  for answer, logprobs in zip(got, scores, strict=True):
    np.testing.assert_allclose(answer.logprobs, logprobs[6:], atol=1e-5)


def _losses(table, hidden, targets, weights):
  teacher = jnp.flip(hidden, axis=0)
  logprobs, entropy = chunked_logprobs_and_entropy(
    hidden, table, targets, counts=weights, cap=30.0, block_tokens=4
  )
  return {
    'cross_entropy': chunked_cross_entropy_loss(
      hidden, table, targets, weights, cap=30.0, block_tokens=4
    )[0],
    'logprobs': (logprobs * weights).sum() + 0.3 * entropy.sum(),
    'distill': chunked_generalized_jsd_loss(
      hidden, table, teacher, table, weights, block_tokens=4
    )[0],
  }


@pytest.mark.parametrize('dtype', (jnp.float32, jnp.bfloat16))
def test_gradients_of_losses_in_hidden_states(dtype):
  model, packed, floats = _models('dense')
  tokens = tiny.tokens(2, 10)
  hidden = _hidden(model, floats, tokens).astype(dtype)
  weights = jnp.asarray(np.random.default_rng(0).random((2, 10)), jnp.float32)
  weights = weights.at[:, :2].set(0.0)
  values = jax.jit(jax.jacrev(_losses, argnums=1))
  got, want = (
    values(output_weight(p, model.config), hidden, tokens, weights)
    for p in (packed, floats)
  )
  # A float table is one of bfloat16 numbers to hidden states of that dtype.
  _close(got, want, 1e-5 if dtype == jnp.float32 else 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize('name', LORA)
@pytest.mark.parametrize('scan', (False, True))
def test_adapters_on_packed_weights(name, scan):
  model, packed, floats = _models('dense', scan)
  config, tokens = LORA[name], tiny.tokens(2, 9)
  lora = lora_lib.init_lora(config, model.config, floats, jax.random.key(3))
  if config.dora:  # whose magnitudes are the base's
    again = lora_lib.init_lora(config, model.config, packed, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, again, lora)
  rng = np.random.default_rng(1)
  lora = jax.tree.map(
    lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), lora
  )

  @jax.jit
  def value(lora, base):
    def loss(lora):
      variables = lora_lib.variables(base, lora, config)
      return jnp.square(model.apply(variables, tokens)[0]).mean()

    return jax.value_and_grad(loss)(lora)

  _close(value(lora, packed), value(lora, floats), 1e-5)


def test_adapters_are_not_merged_into_packed_weights():
  model, packed, _ = _models('dense')
  for config in LORA.values():
    lora = lora_lib.init_lora(config, model.config, packed, jax.random.key(3))
    with pytest.raises(UserError, match='is packed.*into float weights'):
      lora_lib.merge(packed, lora, config)


def test_a_packed_weight_of_another_shape_is_refused():
  model, packed, _ = _models('dense')
  table = jax.tree.map(lambda x: x[:-1], packed['embedder']['embedding'])
  packed = packed | {'embedder': {'embedding': table}}
  message = r'embedder/embedding is a packed weight of shape \(49, 32\)'
  with pytest.raises(ValueError, match=message):
    model.apply({'params': packed}, tiny.tokens(1, 2))
