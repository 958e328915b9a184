"""New tokens and taught ends, from a base model to the export."""

import json
import pathlib

import jax
import numpy as np
import pytest

import llm
from llm import config_args
from llm.checkpoints.hf.save import save_hf
from llm.models.config import ModelConfig
from llm.models.transformer import init_params
from llm.tasks import run
from llm.text.tokenizer import load_tokenizer
from tests.text import chats
from tests.text import conftest as tiny

byte_level_bytes = tiny.byte_level_bytes
ROOT = pathlib.Path(__file__).parents[2]
NEW = ('<tool>', '</tool>')


@pytest.fixture
def base(tmp_path, byte_level_bytes):
  """A base model whose EOS is <|endoftext|>, with a chat template."""
  folder = tmp_path / 'base'
  folder.mkdir()
  chats.save_tokenizer(folder, 'qwen3', byte_level_bytes)
  path = folder / 'tokenizer_config.json'
  config = json.loads(path.read_text()) | {'eos_token': '<|endoftext|>'}
  path.write_text(json.dumps(config))
  tok = load_tokenizer(folder)
  shape = ModelConfig(
    vocab_size=tok.vocab_size, embed_dim=16, hidden_dim=32, num_layers=1,
    num_heads=2, num_kv_heads=1, head_dim=8, max_length=96,
    eos_ids=tok.eos_ids,
  )  # fmt: skip
  shapes = jax.eval_shape(lambda: init_params(shape, jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(1.0 if x.ndim == 1 else 0.0, 0.2, x.shape), shapes
  )
  save_hf(str(folder), shape, params, tokenizer=tok, dtype=np.float32)
  return str(folder)


def train(tmp_path, base, rows, **fields):
  data = tmp_path / 'rows.jsonl'
  data.write_text('\n'.join(map(json.dumps, rows)))
  config = config_args.load_config(str(ROOT / 'configs' / 'sft.py'))
  fields = {
    'model.path': base, 'data.path': str(data), 'data.max_length': 64,
    'data.packing': False, 'train.steps': 1, 'train.batch_size': 2,
    'train.eval_every': 0, 'optim.name': 'sgd', 'optim.lr': 1e-30,
    'optim.warmup_steps': 0, 'export': str(tmp_path / 'out'), **fields,
  }  # fmt: skip
  args = [f'--config.{name}={value}' for name, value in fields.items()]
  config_args.override_config(config, args)
  run.run_task(config, str(tmp_path / 'run'))
  return str(tmp_path / 'out')


TALK = {'messages': chats.CONVERSATIONS['single']}


def test_what_training_teaches_as_an_end(base, tmp_path, capsys):
  out = train(tmp_path, base, [TALK] * 2, **{'sample.prompts': "('hi',)"})
  tok = load_tokenizer(base)
  end, old = map(tok.token_id, ('<|im_end|>', '<|endoftext|>'))
  assert tok.eos_ids == (old,)
  read = lambda name: json.loads((pathlib.Path(out) / name).read_text())
  for name in ('config.json', 'generation_config.json'):
    assert read(name)['eos_token_id'] == [end, old]
  assert read('tokenizer_config.json')['eos_token'] == '<|im_end|>'
  assert 'taught to end with <|im_end|>' in capsys.readouterr().err
  # Samples of the run and the exported model stop there.
  model, params, tok = llm.load(out)
  assert model.config.eos_ids == (end, old)
  [stopped] = llm.generate(
    model, params, tok, 'hi', allowed_ids=[end], max_new_tokens=5
  )
  assert (stopped.finish_reason, stopped.token_ids) == ('stop', [end])
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['data']['rows'] == 2 and result['data']['unread'] == {}


def test_prompts_of_a_chat_stop_at_the_end_of_a_turn(base):
  model, params, tok = llm.load(base)
  end = tok.token_id('<|im_end|>')
  options = dict(allowed_ids=[end], max_new_tokens=4)
  talk = [{'role': 'user', 'content': 'hi'}]
  [chat] = llm.generate(model, params, tok, talk, **options)
  assert (chat.finish_reason, chat.token_ids) == ('stop', [end])
  # A plain text is none of a chat.
  [text] = llm.generate(model, params, tok, 'hi', **options)
  assert (text.finish_reason, text.token_ids) == ('length', [end] * 4)


@pytest.mark.parametrize('rank', (0, 2))
def test_new_tokens_reach_the_export(base, tmp_path, rank):
  rows = [{'prompt': 'a', 'completion': f'{NEW[0]}the cat{NEW[1]}'}] * 2
  out = train(
    tmp_path, base, rows, **{'tokenizer.add_tokens': NEW, 'lora.rank': rank}
  )
  _, before, old = llm.load(base)
  model, params, tok = llm.load(out)
  assert model.config.vocab_size == tok.vocab_size == old.vocab_size + 2
  assert tok.encode(NEW[0], bos=False) == [old.vocab_size]
  for name, leaf in (('embedder', 'embedding'), ('lm_head', 'kernel')):
    table, whole = before[name][leaf], params[name][leaf]
    np.testing.assert_array_equal(whole[: len(table)], table)
    mean = np.broadcast_to(np.mean(table, axis=0), (2, table.shape[1]))
    np.testing.assert_allclose(whole[len(table) :], mean, rtol=1e-6)


def test_new_tokens_in_a_run_that_is_resumed(base, tmp_path):
  fields = {
    'tokenizer.add_tokens': NEW, 'train.checkpoint_every': 1, 'optim.lr': 0.1,
  }  # fmt: skip
  (tmp_path / 'whole').mkdir()
  whole = train(
    tmp_path / 'whole', base, [TALK] * 4, **fields | {'train.steps': 2}
  )
  (tmp_path / 'parts').mkdir()
  for steps in (1, 2):
    parts = train(
      tmp_path / 'parts', base, [TALK] * 4, **fields | {'train.steps': steps}
    )
  for name in ('model.safetensors', 'tokenizer.json', 'config.json'):
    one, two = (pathlib.Path(path) / name for path in (whole, parts))
    assert one.read_bytes() == two.read_bytes(), name
  with pytest.raises(
    llm.errors.UserError, match='vocab_size is 332 and not 330'
  ):
    train(tmp_path / 'parts', base, [TALK] * 4, **{'train.steps': 3})


def learn(tmp_path, base, row, **fields):
  """Trains until the row is known by heart."""
  fields = {
    'train.steps': 150, 'optim.name': 'adamw', 'optim.lr': 0.03,
    'sample.prompts': "('hi',)", 'sample.chat': 'messages' in row,
    'sample.max_new_tokens': 40, 'sample.temperature': 0.0, **fields,
  }  # fmt: skip
  return train(tmp_path, base, [row] * 2, **fields)


def last_sample(tmp_path):
  lines = (tmp_path / 'run' / 'samples.jsonl').read_text().splitlines()
  return json.loads(lines[-1])


@pytest.mark.slow
def test_a_chat_tuned_on_a_base_stops(base, tmp_path):
  """ChatML on a base whose EOS, everywhere, is <|endoftext|>."""
  out = learn(tmp_path, base, TALK)
  model, params, tok = llm.load(out)
  prompts = [TALK['messages'][:1], [{'role': 'user', 'content': 'hi'}]]
  for made in llm.generate(
    model, params, tok, prompts, temperature=0.0, max_new_tokens=40
  ):
    assert made.finish_reason == 'stop'
    assert made.token_ids[-1] == tok.token_id('<|im_end|>')
  assert last_sample(tmp_path)['finish_reason'] == 'stop'


@pytest.mark.slow
@pytest.mark.parametrize('named', ('config.json', 'generation_config.json'))
def test_text_tuned_where_the_files_do_not_agree(base, tmp_path, named, capsys):
  """Training appends the tokenizer's EOS, and another file names another."""
  folder = pathlib.Path(base)
  old = json.loads((folder / 'config.json').read_text())['eos_token_id']
  path = folder / 'tokenizer_config.json'
  config = json.loads(path.read_text()) | {'eos_token': '<|im_end|>'}
  path.write_text(json.dumps(config))
  for name in ('config.json', 'generation_config.json'):
    raw = json.loads((folder / name).read_text())
    raw['eos_token_id'] = old if name == named else None
    (folder / name).write_text(json.dumps(raw))
  out = learn(tmp_path, base, {'prompt': 'hi', 'completion': ' the cat sat'})
  lines = capsys.readouterr().err.splitlines()
  assert sum(f'({named}: ' in line for line in lines) == 1
  model, params, tok = llm.load(out)
  end = tok.token_id('<|im_end|>')
  assert model.config.eos_ids == (end, old)
  [made] = llm.generate(
    model, params, tok, 'hi', temperature=0.0, max_new_tokens=20
  )
  assert (made.text, made.token_ids[-1]) == (' the cat sat', end)
  assert last_sample(tmp_path)['text'] == ' the cat sat'
  assert last_sample(tmp_path)['finish_reason'] == 'stop'


def test_adapters_alone_have_no_rows_for_new_tokens(base, tmp_path):
  with pytest.raises(llm.errors.UserError, match='with lora.export: the rows'):
    train(
      tmp_path, base, [TALK] * 2, **{
        'tokenizer.add_tokens': NEW, 'lora.rank': 2,
        'lora.export': str(tmp_path / 'adapters'),
      }
    )  # fmt: skip
