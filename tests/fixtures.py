"""A model folder of a few kilobytes, and a runner of tasks on it."""

import json
import pathlib

import jax
import numpy as np
import pytest

from llm import config_args
from llm.checkpoints.hf.save import save_hf
from llm.models.config import ModelConfig
from llm.models.transformer import init_params
from llm.tasks.run import find_task
from llm.text.tokenizer import load_tokenizer
from tests.forks import Forks

ROOT = pathlib.Path(__file__).parents[1]
MAX_LENGTH = 96
TEMPLATE = (
  '{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}'
  "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
  '{% if add_generation_prompt %}<a>{% endif %}'
)


def save_model(folder, seed=0, **shape):
  """A random model over bytes, far from uniform, with a chat template."""
  tokenizer = load_tokenizer('bytes')
  sizes = {
    'vocab_size': tokenizer.vocab_size,
    'embed_dim': 16,
    'hidden_dim': 32,
    'num_layers': 1,
    'num_heads': 2,
    'num_kv_heads': 1,
    'head_dim': 8,
    'max_length': MAX_LENGTH,
  }
  config = ModelConfig(
    bos_id=tokenizer.bos_id, eos_ids=tokenizer.eos_ids, **(sizes | shape)
  )
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: rng.normal(1.0 if x.ndim == 1 else 0.0, 0.2, x.shape), shapes
  )
  save_hf(str(folder), config, params, tokenizer=tokenizer, dtype=np.float32)
  (folder / 'chat_template.jinja').write_text(TEMPLATE)
  return str(folder)


@pytest.fixture(scope='session')
def model_folder(tmp_path_factory):
  """A model of a few kilobytes."""
  return save_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='session')
def teacher_folder(tmp_path_factory):
  """Another one, wider and deeper, whose table has rows of padding."""
  return save_model(
    tmp_path_factory.mktemp('teacher'),
    seed=1,
    vocab_size=264,
    embed_dim=24,
    num_layers=2,
  )


@pytest.fixture(scope='session')
def forks(tmp_path_factory):
  """Runs as processes that can be killed: forks.run(args, event, …)."""
  parent = Forks(tmp_path_factory.mktemp('forks'))
  yield parent
  parent.close()


@pytest.fixture
def run_task(model_folder, tmp_path):
  """Runs a task in this process: run_task('score', 'input=IN', …) -> rows."""

  def run(task, *overrides, output='out.jsonl', workdir=None):
    config = config_args.load_config(str(ROOT / 'configs' / f'{task}.py'))
    path = tmp_path / output
    flags = {'model.path': model_folder, 'output': path}
    flags |= dict(item.split('=', 1) for item in overrides)
    args = [f'--config.{name}={value}' for name, value in flags.items()]
    config_args.override_config(config, args)
    find_task(task)(config, workdir)
    return [json.loads(line) for line in path.read_text().splitlines()]

  return run


@pytest.fixture
def write_rows(tmp_path):
  """write_rows(row, …) -> path of a JSONL file; strings are raw lines."""

  def write(*rows, name='in.jsonl'):
    path = tmp_path / name
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text('\n'.join(lines) + '\n')
    return str(path)

  return write
