"""Opening checkpoints: every kind by what its path is, and no weights read."""

import dataclasses
import functools
import json
import os
import shutil

import jax
import numpy as np
import pytest

import llm
from llm.checkpoints import source as source_lib
from llm.checkpoints.opened import Source
from llm.checkpoints.source import open_checkpoint, to_dtype
from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.text.tokenizer import BYTES, load_tokenizer
from tests.models import tiny


def write_toy(path, config, params):
  """A kind of checkpoint that only this test knows: one `.npz` file."""
  leaves = {
    '/'.join(key.key for key in keys): np.asarray(leaf)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  fields = {
    name: getattr(config, name)
    for name in (
      'vocab_size', 'embed_dim', 'hidden_dim', 'num_layers', 'num_heads',
      'num_kv_heads', 'head_dim', 'max_length',
    )
  }  # fmt: skip
  np.savez(path, config=json.dumps(fields), **leaves)


def load_toy(path, dtype, shardings=None, progress=None):
  params = {}
  with np.load(path) as file:
    for name in file.files:
      if name != 'config':
        *folders, last = name.split('/')
        node = functools.reduce(
          lambda n, k: n.setdefault(k, {}), folders, params
        )
        node[last] = jax.numpy.asarray(file[name], dtype)
  return params if shardings is None else jax.device_put(params, shardings)


def open_toy(path, tokenizer=None):
  if not path.endswith('.npz'):
    return None
  with np.load(path) as file:
    config = ModelConfig(**json.loads(str(file['config'])))
  return Source(
    path=path,
    config=config,
    tokenizer_path=tokenizer or BYTES,
    generation={'temperature': 0.5},
    load=functools.partial(load_toy, path),
  )


@pytest.fixture
def toy(tmp_path, monkeypatch):
  monkeypatch.setattr(source_lib, 'KINDS', (open_toy, *source_lib.KINDS))
  model, params = tiny.build(vocab_size=259)
  path = str(tmp_path / 'toy.npz')
  write_toy(path, model.config, params)
  return path, model, params


def test_a_new_kind_is_one_function_and_an_entry(toy, run_task):
  path, model, params = toy
  got = llm.load(path)
  ends = (*model.config.eos_ids, load_tokenizer(BYTES).eos_ids[0])
  shape = dataclasses.replace(model.config, eos_ids=tuple(dict.fromkeys(ends)))
  assert got[0] == dataclasses.replace(model, config=shape)
  jax.tree.map(np.testing.assert_array_equal, got[1], params)
  [want] = llm.generate(*got, 'ab', max_new_tokens=4, temperature=0.0)
  [row] = run_task(
    'generate',
    f'model.path={path}',
    'prompt=ab',
    'sampling.max_new_tokens=4',
    'sampling.temperature=0.0',
  )
  assert row['token_ids'] == want.token_ids and row['text'] == want.text
  assert open_checkpoint(path).generation == {'temperature': 0.5}


def test_a_folder_says_what_it_recommends(model_folder, tmp_path):
  folder = shutil.copytree(model_folder, tmp_path / 'copy')
  says = {'temperature': 0.6, 'top_p': 0.9, 'eos_token_id': [7, 9]}
  (folder / 'generation_config.json').write_text(json.dumps(says))
  source = open_checkpoint(str(folder))
  assert source.generation == says
  assert source.config.eos_ids == (7, 9)
  os.remove(folder / 'generation_config.json')
  assert open_checkpoint(str(folder)).generation == {}


def test_weights_come_in_the_dtype_that_is_asked_for(model_folder):
  params = open_checkpoint(model_folder).load(to_dtype('bfloat16'))
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {'bfloat16'}


def test_what_is_no_checkpoint_is_refused(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="path='/no/such' does not exist: give a"):
    open_checkpoint('/no/such')
  monkeypatch.setattr(source_lib, 'KINDS', ())
  with pytest.raises(UserError, match='is of no known kind: give a Hugging'):
    open_checkpoint(str(tmp_path))
  with pytest.raises(UserError, match="dtype='int8': use one of float32, bf"):
    to_dtype('int8')


def test_opening_needs_no_jax(model_folder, run_python):
  run_python(f"""
import sys
from llm.checkpoints.source import check_dtype, open_checkpoint
from llm.config_args import load_config
from llm.engine.loading import open_model

check_dtype('float32')
assert open_checkpoint({model_folder!r}).config.vocab_size
config = load_config('configs/generate.py')
config.model.path = {model_folder!r}
assert open_model(config).limits.max_length == 96
assert 'jax' not in sys.modules
""")


TOKENIZER = {
  'version': '1.0',
  'added_tokens': [
    {'id': id, 'content': text, 'special': True, 'single_word': False,
     'lstrip': False, 'rstrip': False, 'normalized': False}
    for id, text in enumerate(('<|endoftext|>', '<|im_end|>'))
  ],
  'model': {'type': 'BPE', 'merges': [],
            'vocab': {'<|endoftext|>': 0, '<|im_end|>': 1, 'a': 2}},
  'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False,
                    'trim_offsets': False, 'use_regex': True},
  'decoder': {'type': 'ByteLevel', 'add_prefix_space': False,
              'trim_offsets': False, 'use_regex': True},
}  # fmt: skip


@pytest.mark.parametrize(
  'config, generation, tokenizer, ends, said',
  [
    (0, 0, '<|endoftext|>', (0,), None),
    (0, None, '<|endoftext|>', (0,), None),
    (0, None, '<|im_end|>', (0, 1), 'config.json: 0 (<|endoftext|>)'),
    (0, [1, 0], '<|im_end|>', (1, 0), 'tokenizer: 1 (<|im_end|>)'),
    (None, 1, '<|endoftext|>', (1, 0), 'generation_config.json: 1'),
    # An id of an ordinary token, as in configs that were copied, is no end
    # where another file knows better.
    (2, 1, '<|im_end|>', (1,), 'config.json: 2 (a)'),
  ],
)
def test_what_ends_a_text(tmp_path, config, generation, tokenizer, ends, said):
  files = {
    'config.json': {
      'model_type': 'llama', 'vocab_size': 8, 'hidden_size': 8,
      'intermediate_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 1,
      'eos_token_id': config,
    },
    'tokenizer.json': TOKENIZER,
    'tokenizer_config.json': {'eos_token': tokenizer},
  }  # fmt: skip
  if generation is not None:
    files['generation_config.json'] = {'eos_token_id': generation}
  for name, value in files.items():
    (tmp_path / name).write_text(json.dumps(value))
  found = open_checkpoint(str(tmp_path)).ends
  assert found.ids == ends
  assert found.note is None if said is None else said in found.note
