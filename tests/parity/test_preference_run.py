"""The command `preference` beside a plain DPO loop in torch and transformers.

Nothing is shared but the folder that both start from and the file of pairs.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
import torch
import transformers

from llm import config_args
from llm.tasks import run as run_lib

STEPS, BATCH, RATE, WARMUP, DECAY, CLIP, BETA = 5, 4, 1e-3, 2, 0.1, 1.0, 0.3
BOS, EOS = 256, 257  # of the tokenizer 'bytes'
WORDS = 'red green blue one two three four sun moon'.split()


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """A random Llama whose outputs are far from uniform, as a folder."""
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=259,
      hidden_size=32,
      intermediate_size=80,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=128,
      bos_token_id=BOS,
      eos_token_id=EOS,
      initializer_range=0.1,
    )
  )
  folder = tmp_path_factory.mktemp('start')
  model.save_pretrained(folder)
  return folder


def _rows():
  rng = np.random.default_rng(0)
  draw = lambda n: ' '.join(rng.choice(WORDS, n))
  return [
    {
      'prompt': f'Say {draw(rng.integers(1, 4))}:',
      'chosen': f' {draw(rng.integers(1, 4))}.',
      'rejected': f' {draw(rng.integers(1, 4))}!',
    }
    for _ in range(STEPS * BATCH)
  ]


def _logprob(model, prompt, answer):
  """Of one answer, summed: no padding, no packing."""
  prompt, answer = prompt.encode(), answer.encode()
  tokens = torch.tensor([[BOS, *prompt, *answer, EOS]])
  logprobs = model(tokens).logits[0, :-1].log_softmax(-1)
  each = logprobs.gather(-1, tokens[0, 1:, None])[:, 0]
  return each[len(prompt) :].sum()


def _torch_run(folder, rows):
  """Losses of all steps and the last weights."""
  model, reference = (
    transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for _ in range(2)
  )
  matrices = [p for p in model.parameters() if p.ndim > 1]
  vectors = [p for p in model.parameters() if p.ndim == 1]
  optimizer = torch.optim.AdamW(
    [
      {'params': matrices, 'weight_decay': DECAY},
      {'params': vectors, 'weight_decay': 0.0},
    ],
    lr=RATE,
    betas=(0.9, 0.999),
    eps=1e-8,
  )
  rate = lambda i: min(1.0, (i + 1) / WARMUP)
  scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
  losses = []
  for step in range(STEPS):
    loss = 0.0
    for row in rows[step * BATCH : (step + 1) * BATCH]:
      good, bad = (
        [_logprob(m, row['prompt'], row[k]) for m in (model, reference)]
        for k in ('chosen', 'rejected')
      )
      difference = (good[0] - bad[0]) - (good[1] - bad[1]).detach()
      loss -= torch.nn.functional.logsigmoid(BETA * difference) / BATCH
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
  return losses, {k: v.detach().numpy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
  'changes',
  [{}, {'train.microbatch_size': 2, 'loss.reference': 'frozen'}],
  ids=['plain', 'microbatches'],
)
def test_losses_and_weights_are_those_of_torch(start, tmp_path, changes):
  rows = _rows()
  data = tmp_path / 'rows.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  expected_losses, expected = _torch_run(start, rows)
  config = config_args.load_config('configs/preference.py')
  fields = {
    'model.path': start,
    'tokenizer.path': 'bytes',
    'data.path': data,
    'data.max_length': 64,
    'data.shuffle': False,
    'train.steps': STEPS,
    'train.batch_size': BATCH,
    'optim.lr': RATE,
    'optim.schedule': 'constant',
    'optim.warmup_steps': WARMUP,
    'optim.weight_decay': DECAY,
    'optim.clip_norm': CLIP,
    'loss.beta': BETA,
    'export': tmp_path / 'out',
    **changes,
  }
  config_args.override_config(
    config, [f'--config.{name}={value}' for name, value in fields.items()]
  )
  run_lib.run_task(config, str(tmp_path / 'run'))
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line)['loss'] for line in lines]
  np.testing.assert_allclose(losses, expected_losses, atol=1e-5, rtol=0)
  weights = load_file(tmp_path / 'out' / 'model.safetensors')
  assert set(weights) == set(expected)
  for name, value in weights.items():
    np.testing.assert_allclose(
      value, expected[name], atol=1e-4, rtol=0, err_msg=name
    )
  # The run has moved the weights far beyond that tolerance.
  before = load_file(start / 'model.safetensors')
  moved = max(abs(weights[k] - before[k]).max() for k in weights)
  assert moved > 2e-3
