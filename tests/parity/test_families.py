"""Every family and rotary type against `transformers`, in float32."""

import glob
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm.checkpoints.hf.load import load_params
from llm.checkpoints.hf.save import save_hf
from llm.checkpoints.hf.source import read_config
from llm.decode.generate import generate
from llm.decode.sampling_params import SamplingParams
from llm.models.transformer import Transformer
from tests.parity.families import CASES, load_torch, save_model

_LENGTHS = (40, 23, 9)  # past the windows (8) and the original contexts (16)
_NEW_TOKENS = 64


@pytest.fixture(scope='module', params=CASES, ids=lambda case: case.name)
def folder(request, tmp_path_factory):
  """A saved model of several files."""
  path = str(tmp_path_factory.mktemp(request.param.name))
  save_model(request.param, path)
  assert len(glob.glob(os.path.join(path, '*.safetensors'))) > 1
  return path


@pytest.fixture(scope='module')
def ours(folder):
  config = read_config(folder)
  return Transformer(config), load_params(folder, config)


@pytest.fixture(scope='module')
def rows(ours):
  rng = np.random.default_rng(0)
  return [
    rng.integers(3, ours[0].config.vocab_size, n).tolist() for n in _LENGTHS
  ]


def _torch_logps(folder, row):
  model = load_torch(folder)
  with torch.no_grad():
    logits = model(torch.tensor([row])).logits[0].float()
  return torch.log_softmax(logits, -1).numpy()


def _our_logps(model, params, rows):
  width = max(len(row) for row in rows) + 3
  tokens = np.zeros((len(rows), width), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  lengths = jnp.array([len(row) for row in rows])
  logits, _ = jax.jit(lambda p, t, n: model.apply({'params': p}, t, lengths=n))(
    params, tokens, lengths
  )
  return np.asarray(jax.nn.log_softmax(logits))


def test_logps_equal_transformers(folder, ours, rows):
  logps = _our_logps(*ours, rows)
  for i, row in enumerate(rows):
    expected = _torch_logps(folder, row)
    top = np.exp(expected.max(-1)).mean()
    assert top > 5 / ours[0].config.vocab_size  # far from uniform
    np.testing.assert_allclose(
      logps[i, : len(row)], expected, rtol=0, atol=1e-4
    )


def test_greedy_tokens_equal_transformers(folder, ours, rows):
  model, params = ours
  # Where the cache would hold keys of the short table beside those of the
  # long one, the definition is the run without a cache; `transformers` sees
  # to that itself for Phi-3 alone.
  use_cache = model.config.rope.type != 'longrope'
  sampling = SamplingParams(temperature=0.0, max_new_tokens=_NEW_TOKENS)
  done = generate(
    model,
    params,
    rows,
    [sampling] * len(rows),
    chunk_steps=_NEW_TOKENS,  # one program; other tests split the answer
    order=(),
  )
  for row, completion in zip(rows, done, strict=True):
    out = load_torch(folder).generate(
      torch.tensor([row]),
      max_new_tokens=_NEW_TOKENS,
      do_sample=False,
      use_cache=use_cache,
      pad_token_id=0,
    )
    assert list(completion.token_ids) == out[0, len(row) :].tolist()


def test_saved_folder_equals_transformers(folder, ours, rows, tmp_path):
  """What save_hf writes gives `transformers` the same logits."""
  model, params = ours
  save_hf(str(tmp_path), model.config, params, max_shard_bytes=20_000)
  assert read_config(str(tmp_path)) == model.config
  row = rows[0]
  np.testing.assert_array_equal(
    _torch_logps(str(tmp_path), row), _torch_logps(folder, row)
  )


def test_the_language_model_of_a_multimodal_gemma3(tmp_path):
  torch.manual_seed(0)
  text = next(case for case in CASES if case.name == 'gemma3').options
  config = transformers.Gemma3Config(
    text_config=text,
    vision_config=dict(
      hidden_size=16,
      intermediate_size=16,
      num_hidden_layers=1,
      num_attention_heads=2,
      image_size=28,
      patch_size=14,
    ),
    eos_token_id=[1, 5],
    image_token_index=95,
  )
  model = transformers.Gemma3ForConditionalGeneration(config).eval()
  model.save_pretrained(str(tmp_path))
  ours = read_config(str(tmp_path))
  assert ours.eos_ids == (1, 5)
  params = load_params(str(tmp_path), ours)
  row = list(range(6, 46))
  with torch.no_grad():
    expected = torch.log_softmax(model(torch.tensor([row])).logits[0], -1)
  logps = _our_logps(Transformer(ours), params, [row])
  np.testing.assert_allclose(
    logps[0, : len(row)], expected.numpy(), rtol=0, atol=1e-4
  )
