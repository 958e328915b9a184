"""The command `sft` beside a plain training loop in torch and transformers.

Nothing is shared but the folder that both start from and the file of rows.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
import torch
import transformers

from llm import config_args
from llm.tasks import run as run_lib

STEPS, BATCH, RATE, WARMUP, DECAY, CLIP = 20, 4, 1e-3, 5, 0.1, 1.0
BOS, EOS = 256, 257  # of the tokenizer 'bytes'
CHATML = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
  "{% if message['role'] == 'assistant' %}"
  "{{ message['content'] + '<|im_end|>' }}"
  "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
  '{% endfor %}'
)
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
      max_position_embeddings=256,
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
      'prompt': f'Say {draw(rng.integers(1, 5))}:',
      'completion': f' {draw(rng.integers(1, 7))}.',
    }
    for _ in range(STEPS * BATCH)
  ]


def _torch_run(folder, examples):
  """Losses of all steps and the last weights.

  examples: (token ids, which of them are to be predicted) of each row.
  """
  model = transformers.LlamaForCausalLM.from_pretrained(
    folder, dtype=torch.float32
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
    loss_sum, count = 0.0, 0
    # One by one: no padding, no packing.
    for ids, mask in examples[step * BATCH : (step + 1) * BATCH]:
      tokens = torch.tensor([ids])
      logits = model(tokens).logits[0, :-1]
      nll = torch.nn.functional.cross_entropy(
        logits, tokens[0, 1:], reduction='none'
      )[torch.tensor(mask[1:], dtype=torch.bool)]
      loss_sum, count = loss_sum + nll.sum(), count + len(nll)
    loss = loss_sum / count
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
  return losses, {k: v.detach().numpy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'train.microbatch_size': 2},
    {'model.scan_layers': True, 'train.remat': 'full'},
  ],
  ids=['plain', 'microbatches', 'scanned'],
)
def test_losses_and_weights_are_those_of_torch(start, tmp_path, changes):
  rows, examples = _rows(), []
  for row in rows:
    prompt, answer = row['prompt'].encode(), row['completion'].encode()
    ids = [BOS, *prompt, *answer, EOS]
    examples.append((ids, [i > len(prompt) for i in range(len(ids))]))
  fields = {'tokenizer.path': 'bytes', **changes}
  _compare(start, tmp_path, rows, examples, fields)


def test_messages_are_those_of_transformers(start, tmp_path):
  """Conversations of several turns, masked by the tokenizer's own template."""
  rng = np.random.default_rng(1)
  draw = lambda: ' '.join(rng.choice(WORDS, rng.integers(1, 4)))
  rows = []
  for i in range(STEPS * BATCH):
    turns = ('system',) * (i % 2) + ('user', 'assistant') * (1 + i % 3)
    rows.append({'messages': [{'role': r, 'content': draw()} for r in turns]})
  tokenizer = _byte_tokenizer()
  tokenizer.chat_template = CHATML
  tokenizer.save_pretrained(tmp_path / 'tokenizer')
  answer = "{{ message['content'] + '<|im_end|>' }}"
  marked = f'{{% generation %}}{answer}{{% endgeneration %}}'
  template = CHATML.replace(answer, marked, 1)
  examples = []
  for row in rows:
    made = tokenizer.apply_chat_template(
      row['messages'],
      chat_template=template,
      return_assistant_tokens_mask=True,
      return_dict=True,
    )
    examples.append((made['input_ids'], made['assistant_masks']))
  fields = {'tokenizer.path': tmp_path / 'tokenizer'}
  _compare(start, tmp_path, rows, examples, fields)


def _byte_tokenizer():
  """A token for each byte, and ChatML's two marks."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  whole = tokenizers.Tokenizer(
    models.BPE({letter: i for i, letter in enumerate(letters)}, [])
  )
  whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  whole.decoder = decoders.ByteLevel()
  whole.add_special_tokens(['<|im_start|>', '<|im_end|>'])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=whole, eos_token='<|im_end|>'
  )


def _compare(start, tmp_path, rows, examples, changes):
  """Runs both on the same rows."""
  data = tmp_path / 'rows.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  expected_losses, expected = _torch_run(start, examples)
  config = config_args.load_config('configs/sft.py')
  fields = {
    'model.path': start,
    'data.path': data,
    'data.max_length': 256,
    'data.packing': False,
    'data.shuffle': False,
    'train.steps': STEPS,
    'train.batch_size': BATCH,
    'optim.lr': RATE,
    'optim.schedule': 'constant',
    'optim.warmup_steps': WARMUP,
    'optim.weight_decay': DECAY,
    'optim.clip_norm': CLIP,
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
  assert moved > 1e-2
