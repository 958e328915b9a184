"""The stories260K checkpoint against a NumPy forward that shares no code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.checkpoints import llama2c
from llm.decode.generate import generate
from llm.decode.sampling_params import SamplingParams
from llm.models.cache import init_cache
from llm.models.transformer import Transformer
from llm.text.tokenizer import find_tokenizer, load_tokenizer
from tests.models.agreement import gaps

_BEGINS = 'Once upon a time, there was a little girl named Lily.'
_BOS = 1
_STEPS = 160


@pytest.fixture(scope='module')
def path(data_dir):
  return str(data_dir / 'weights/stories260K/stories260K.bin')


@pytest.fixture(scope='module')
def loaded(path):
  config, params = llama2c.load(path)
  return Transformer(config), params


@pytest.fixture(scope='module')
def oracle(path):
  """(tokens, logits) of greedy decoding, as run.c of llama2.c does it."""
  step, tokens, logits = _numpy_model(path), [_BOS], []
  for position in range(_STEPS):
    logits.append(step(tokens[-1], position))
    tokens.append(int(np.argmax(logits[-1])))
  return tokens, np.array(logits)


def _numpy_model(path):
  """step(token, position) -> logits float64[V]; keeps keys and values."""
  d, f, n_layers, n, k, v, t = np.fromfile(path, '<i4', 7).tolist()
  data, h = np.fromfile(path, '<f4', offset=28).astype(np.float64), d // n
  at = 0

  def take(*shape):
    nonlocal at
    at += int(np.prod(shape))
    return data[at - int(np.prod(shape)) : at].reshape(shape)

  table, norm1 = take(v, d), take(n_layers, d)
  wq, wk, wv = (take(n_layers, heads * h, d) for heads in (n, k, k))
  wo, norm2 = take(n_layers, d, n * h), take(n_layers, d)
  w1, w2, w3 = take(n_layers, f, d), take(n_layers, d, f), take(n_layers, f, d)
  norm = take(d)
  assert at + t * h == len(data) and v > 0  # the rotary tables, shared output
  keys, values = [[] for _ in range(n_layers)], [[] for _ in range(n_layers)]

  def rms(x, weight):
    return weight * x / np.sqrt(np.mean(x * x) + 1e-5)

  def rotate(x, position):
    x = x.reshape(-1, h // 2, 2)
    angle = position * 10000.0 ** (-np.arange(0, h, 2) / h)
    turned = (x[..., 0] + 1j * x[..., 1]) * np.exp(1j * angle)
    return np.stack([turned.real, turned.imag], -1).reshape(-1, h)

  def step(token, position):
    x = table[token]
    for i in range(n_layers):
      y = rms(x, norm1[i])
      query = rotate(wq[i] @ y, position)
      keys[i].append(rotate(wk[i] @ y, position))
      values[i].append((wv[i] @ y).reshape(k, h))
      heads = []
      for head in range(n):
        past = np.array(keys[i])[:, head * k // n]
        score = past @ query[head] / np.sqrt(h)
        weight = np.exp(score - score.max())
        weight /= weight.sum()
        heads.append(weight @ np.array(values[i])[:, head * k // n])
      x = x + wo[i] @ np.concatenate(heads)
      y = rms(x, norm2[i])
      gate = w1[i] @ y
      x = x + w2[i] @ (gate / (1 + np.exp(-gate)) * (w3[i] @ y))
    return table @ rms(x, norm)

  return step


def test_greedy_tokens_and_text(loaded, oracle, path):
  model, params = loaded
  sampling = SamplingParams(
    temperature=0.0, max_new_tokens=_STEPS, ignore_eos=True
  )
  (done,) = generate(
    model, params, [[_BOS]], [sampling], chunk_steps=_STEPS // 2
  )
  assert list(done.token_ids) == oracle[0][1:]
  tokenizer = load_tokenizer(find_tokenizer(path), model.config.vocab_size)
  assert tokenizer.decode(list(done.token_ids)).strip().startswith(_BEGINS)


def test_logits(loaded, oracle):
  model, params = loaded
  tokens, expected = oracle
  logits, _ = model.apply({'params': params}, jnp.array([tokens[:_STEPS]]))
  np.testing.assert_allclose(logits[0], expected, rtol=0, atol=2e-4)


def test_prefill_split_at_every_position(loaded, oracle):
  model, params = loaded
  prompt, answer = oracle[0][:24], oracle[0][24:64]

  @functools.partial(jax.vmap, in_axes=(None, 0))
  def decode(tokens, split):
    """Greedy answer after reading tokens[:split], then tokens[split:]."""
    rest = jnp.roll(tokens, -split)
    lengths = jnp.array([split])
    cache = init_cache(model.config, 1, 96, jnp.float32)
    first, cache = model.apply(
      {'params': params}, tokens[None], cache=cache, lengths=lengths
    )
    second, cache = model.apply(
      {'params': params},
      rest[None],
      cache=cache,
      lengths=len(prompt) - lengths,
    )
    last = jnp.where(
      split == len(prompt),
      first[0, -1],
      second[0, len(prompt) - split - 1],
    )

    def step(carry, _):
      token, cache = carry
      logits, cache = model.apply(
        {'params': params}, token[None, None], cache=cache
      )
      return (jnp.argmax(logits[0, 0]), cache), token

    _, out = jax.lax.scan(step, (jnp.argmax(last), cache), length=len(answer))
    return out

  splits = jnp.arange(1, len(prompt) + 1)
  out = jax.jit(decode)(jnp.array(prompt), splits)
  np.testing.assert_array_equal(out, np.tile(answer, (len(splits), 1)))


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_a_trained_model_samples_what_it_scores(loaded, oracle, temperature):
  """1,024 stories that begin at 64 places of the greedy one.

  Its logits are near 20, where float32 has steps of 2e-6: a few of those, so
  1e-5 for all but some of the 65,536 tokens.
  """
  model, params = loaded
  prompts = [tuple(oracle[0][:n]) for n in range(1, 65)]
  answers, gap = gaps(
    model,
    params,
    prompts,
    group=16,
    temperature=temperature,
    seed=(0,),
    max_new_tokens=64,
    eos_ids=(_BOS,),
  )
  assert len({tuple(a.token_ids) for a in answers}) > 1000
  assert np.quantile(gap, 0.99) < 1e-5 and gap.max() < 4e-5
