"""The run: one part of the experiment, by `config.part`."""

from collections.abc import Callable
import os
import pathlib
import time

import ml_collections
import numpy as np

from experiments import machine
from experiments.real_text import ngrams
from llm import api, config_args
from llm.data import dataset
from llm.data.examples import Examples
from llm.decode.generate import generate
from llm.decode.sampling_params import SamplingParams
from llm.errors import UserError
from llm.runs import outputs, report
from llm.tasks import supervised
from llm.text.tokenizer import Tokenizer, load_tokenizer
from llm.text.training import save_sentencepiece, train_sentencepiece

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
SHAKESPEARE = 'text/tinyshakespeare/input.txt'
STORIES = 'text/tinystories/tinystories_sample.txt'
INSTRUCTIONS = 'sft/rasbt_instruction/instruction-data.json'
HELD_OUT = 0.1  # of each file, its end
ORDERS = 5  # of the n-gram models
MUON = {'name': 'muon', 'lr': 3e-3, 'b1': 0.95}
BATCH, EVAL_EVERY = 15, 11  # of fine-tuning: 66 steps an epoch
CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{ 'Question: ' + message.content + '\n' }}
  {%- else -%}
    {{ 'Answer: ' + message.content + eos_token }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Answer:' }}{%- endif -%}
"""


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Measures one part and writes `result.json`.

  Raises:
    UserError: no workdir, an unknown part, or no data.
  """
  if not workdir:
    raise UserError('no --workdir: name a folder for result.json')
  if config.part not in PARTS:
    raise UserError(
      f'part={config.part!r}: use one of {", ".join(sorted(PARTS))}'
    )
  data = os.environ.get('LLM_DATA')
  if not data:
    raise UserError(
      'LLM_DATA is not set: name the folder of real data (see the config)'
    )
  result = {'machine': machine.describe()}
  result |= PARTS[config.part](
    config, pathlib.Path(workdir), pathlib.Path(data)
  )
  outputs.write_result(workdir, result)


def shakespeare(config, workdir: pathlib.Path, data: pathlib.Path) -> dict:
  """Held-out loss after pretraining on bytes, and that of n-gram models."""
  own = config.bytes
  text = np.frombuffer((data / SHAKESPEARE).read_bytes(), np.uint8)
  cut = int(len(text) * (1 - HELD_OUT) + 1e-9)
  train, held_out = text[:cut], text[cut:]
  if own.shuffled:
    rng = np.random.default_rng(config.seed)
    train, held_out = rng.permutation(train), rng.permutation(held_out)
  path = workdir / 'input.txt'
  path.write_bytes(train.tobytes() + held_out.tobytes())
  fields = _fields('pretrain.py:shakespeare', config.seed)
  fields.data.path = str(path)
  fields.data.eval_fraction = HELD_OUT
  if own.muon:
    fields.optim.update(MUON)
  fields.train.steps = own.steps
  fields.optim.warmup_steps = min(fields.optim.warmup_steps, own.steps)
  began = time.perf_counter()
  result = supervised.run(fields, str(workdir / 'training'))
  return {
    'seconds': time.perf_counter() - began,
    'eval_loss': result['eval_loss'],
    'tokens_per_s': result['tokens_per_s'],
    'parameters': result['parameters'],
    'curve': _curve(workdir / 'training'),
    'ngrams': dict(
      enumerate(ngrams.held_out_losses(train, held_out, ORDERS), 1)
    ),
    'entropy': ngrams.entropy(held_out),
  }


def instructions(config, workdir: pathlib.Path, data: pathlib.Path) -> dict:
  """Fine-tuning of a model that knows stories, and of a fresh one."""
  own = config.instructions
  tokenizer = workdir / 'tokenizer'
  with (data / STORIES).open(encoding='utf-8') as stories:
    trained = train_sentencepiece(stories, own.vocab_size)
  save_sentencepiece(tokenizer, trained, CHAT_TEMPLATE)
  tok = load_tokenizer(tokenizer)
  fields = _fields('pretrain.py', config.seed)
  _set_story_fields(fields, data, tokenizer, own)
  fields.export = str(workdir / 'stories')
  result = {'stories': _train(fields, workdir / 'pretraining')}
  for name in ('pretrained', 'fresh'):
    fields = _fields('sft.py', config.seed)
    if name == 'pretrained':
      fields.model.path = str(workdir / 'stories')
    else:
      _set_shape(fields)
      fields.tokenizer.path = str(tokenizer)
    examples, held_out = _set_instruction_fields(fields, data, tok, own)
    fields.export = str(workdir / name)
    result[name] = _train(fields, workdir / f'tuning_{name}')
    result[name]['curve'] = _curve(workdir / f'tuning_{name}')
  for name in ('stories', 'pretrained', 'fresh'):
    result[name] |= _answer(workdir / name, held_out, own.max_new_tokens)
  result['steps_per_epoch'] = len(examples) // BATCH
  result['text'] = _coverage(tok, examples)
  return result


PARTS: dict[str, Callable[..., dict]] = {
  'bytes': shakespeare,
  'instructions': instructions,
}


def _fields(name: str, seed: int) -> ml_collections.ConfigDict:
  fields = config_args.load_config(str(CONFIGS / name))
  fields.seed = fields.data.seed = seed
  fields.train.keep = 1
  fields.train.best = ''
  return fields


def _set_shape(fields) -> None:
  fields.model.embed_dim = 128
  fields.model.hidden_dim = 352
  fields.model.num_layers = 4
  fields.model.num_heads = 4
  fields.model.num_kv_heads = 4
  fields.model.head_dim = 32
  fields.model.max_length = 512


def _set_story_fields(fields, data, tokenizer, own) -> None:
  _set_shape(fields)
  fields.tokenizer.path = str(tokenizer)
  fields.data.path = str(data / STORIES)
  fields.data.separator = '<|endoftext|>\n'
  fields.data.eval_fraction = HELD_OUT
  fields.data.max_length = 256
  fields.train.steps = own.pretrain_steps
  fields.train.batch_size = 8
  fields.optim.lr = 3e-3
  fields.optim.warmup_steps = min(100, own.pretrain_steps)


def _set_instruction_fields(
  fields, data, tok: Tokenizer, own
) -> tuple[Examples, Examples]:
  """Sets what both fine-tunings share; returns the rows they will see."""
  fields.data.path = str(data / INSTRUCTIONS)
  fields.data.eval_fraction = HELD_OUT
  fields.data.packing = False  # so that an epoch is a whole number of steps
  fields.train.batch_size = BATCH
  fields.train.eval_every = EVAL_EVERY
  fields.train.eval_first = True
  fields.optim.lr = 1e-3
  examples, held_out = dataset.load_examples(
    fields.data.path,
    tok,
    max_length=fields.data.max_length,
    eval_fraction=HELD_OUT,
  )
  fields.train.steps = own.epochs * len(examples) // BATCH
  return examples, held_out


def _train(fields, folder: pathlib.Path) -> dict:
  began = time.perf_counter()
  result = supervised.run(fields, str(folder))
  names = ('eval_loss', 'tokens', 'tokens_per_s', 'parameters')
  seconds = time.perf_counter() - began
  return {'seconds': seconds} | {name: result[name] for name in names}


def _curve(folder: pathlib.Path) -> dict[int, float]:
  """Held-out loss by step."""
  rows = report.read_rows(str(folder))
  return {r['step']: r['eval_loss'] for r in rows if 'eval_loss' in r}


def _answer(
  folder: pathlib.Path, held_out: Examples, max_new_tokens: int
) -> dict:
  """Completes the held-out prompts, greedily, with an exported model."""
  model, params, tok = api.load(str(folder))
  prompts = [e.tokens[: e.loss_mask.argmax()].tolist() for e in held_out]
  right = [e.tokens[e.loss_mask].tolist() for e in held_out]
  settings = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0)
  answers = generate(
    model,
    params,
    prompts,
    [settings] * len(prompts),
    eos_ids=model.config.eos_ids,
  )
  texts = [tok.decode(answer.token_ids).strip() for answer in answers]
  wanted = [tok.decode(tokens).strip() for tokens in right]
  outputs.write_json(
    str(folder / 'answers.json'),
    [
      {'prompt': tok.decode(p), 'answer': t, 'wanted': w}
      for p, t, w in zip(prompts, texts, wanted, strict=True)
    ],
  )
  return {
    'eos_share': np.mean([a.finish_reason == 'stop' for a in answers]),
    'empty_share': np.mean([not text for text in texts]),
    'equal_share': np.mean(
      [t == w for t, w in zip(texts, wanted, strict=True)]
    ),
    'answer_tokens': np.mean([len(a.token_ids) for a in answers]),
    'wanted_tokens': np.mean([len(tokens) for tokens in right]),
    'longest_wanted': max(map(len, right)),
  }


def _coverage(tok: Tokenizer, examples: Examples) -> dict:
  """How the stories' tokenizer fits the instructions."""
  tokens = examples.tokens.tolist()
  single = sum(len(tok.token_bytes(t)) == 1 for t in tokens)
  size = sum(len(tok.token_bytes(t)) for t in tokens)
  return {
    'bytes_per_token': size / len(tokens),
    'single_bytes': single / len(tokens),
  }
