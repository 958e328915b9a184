"""The run `quickstart`: world, tokenizer, model and exam, from nothing.

Five stages, each a folder of the workdir (see `llm.tasks.stages`):
  corpus     the world's ledger and its documents
  tokenizer  a SentencePiece model with a chat template
  train      the parameters; `metrics.jsonl` in the workdir
  model      the same as a Hugging Face folder
  exam       questions, answers and their marks
"""

import json
import pathlib
import time

import jax
import ml_collections
import numpy as np
from rich import console as rich_console

from llm.checkpoints import hf
from llm.data import packing
from llm.data.worlds import corpus as corpus_lib
from llm.data.worlds import world as world_lib
from llm.errors import UserError
from llm.losses import language
from llm.models.config import ModelConfig
from llm.models.transformer import Transformer, init_params
from llm.tasks import exam, report
from llm.tasks import run as run_lib
from llm.tasks.stages import Stage, run_stage
from llm.text import chat, training
from llm.text.tokenizer import Tokenizer, load_tokenizer
from llm.train import optim, step
from llm.train import state as state_lib

DEFAULT_WORKDIR = 'runs/quickstart'
# "<s> Question: … Answer: …</s>", so that a chat and a text typed in the same
# form have the same tokens.
CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{ ' Question: ' + message.content }}
  {%- elif message.role == 'assistant' -%}
    {{ ' Answer: ' + message.content + eos_token }}
  {%- else -%}
    {{ raise_exception('roles are user and assistant') }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ' Answer:' }}{%- endif -%}
"""


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Runs the stages that are not done yet and reports the exam.

  Args:
    config: see `configs/quickstart.py`.
    workdir: folder of all results; None is `DEFAULT_WORKDIR`.

  Raises:
    UserError: a field has no meaning; the message names it.
  """
  if workdir is None:
    workdir = DEFAULT_WORKDIR
    run_lib.prepare_workdir(config, workdir)
  # What a later stage would refuse is refused before any work.
  _check(config)
  optim.make_optimizer(config.optim, config.train.steps)
  world = _build_world(config)
  trained, model = _make_model(config, world, pathlib.Path(workdir))
  marks = run_stage(
    workdir,
    'exam',
    model.inputs | {'exam': config.exam.to_dict()},
    lambda folder: exam.hold_exam(
      folder,
      world,
      model.folder,
      untrained=_fresh_params(config, load_tokenizer(model.folder)),
      settings=config.exam,
    ),
  )
  _tell(marks, 'all {questions} questions that the ledger can answer')
  exam.print_report(marks)
  result = {
    'loss': trained.summary['loss'],
    'train_s': trained.summary['seconds'],
    **marks.summary['result'],
  }
  run_lib.write_result(str(workdir), result)


def _make_model(
  config: ml_collections.ConfigDict,
  world: world_lib.World,
  workdir: pathlib.Path,
) -> tuple[Stage, Stage]:
  """The stages up to the Hugging Face folder; returns the last two."""
  inputs = {'seed': config.seed, 'world': config.world.to_dict()}
  corpus = run_stage(
    workdir, 'corpus', inputs, lambda folder: _write_corpus(folder, world)
  )
  _tell(corpus, '{documents:,} documents about {people} people and {sums} sums')

  inputs |= {'tokenizer': config.tokenizer.to_dict()}
  tokenizer = run_stage(
    workdir,
    'tokenizer',
    inputs,
    lambda folder: _train_tokenizer(folder, corpus, config.tokenizer),
  )
  _tell(tokenizer, '{vocab_size} tokens of {characters:.1f} characters')

  fields = ('model', 'data', 'train', 'optim')
  inputs |= {name: config[name].to_dict() for name in fields}
  trained = run_stage(
    workdir,
    'train',
    inputs,
    lambda folder: _train(folder, config, corpus, tokenizer, workdir),
  )
  _tell(
    trained,
    '{parameters:,} parameters, {tokens:,} tokens in {seconds:.0f} s, '
    'loss {first_loss:.2f} to {loss:.2f} nats',
  )

  model = run_stage(
    workdir,
    'model',
    inputs,
    lambda folder: _export(folder, config, tokenizer, trained),
  )
  _tell(model, 'a folder for transformers and configs/generate.py')
  return trained, model


def _check(config) -> None:
  if config.seed < 0:
    raise UserError(f'seed={config.seed}: use 0 or more')
  for group in ('model', 'data', 'train', 'exam'):
    for name, value in config[group].items():
      if value < 1:
        raise UserError(f'{group}.{name}={value}: use 1 or more')
  model = config.model
  if model.num_heads % model.num_kv_heads:
    raise UserError(
      f'model.num_kv_heads={model.num_kv_heads}: use a divisor of '
      f'model.num_heads={model.num_heads}'
    )
  if model.head_dim % 2:
    raise UserError(
      f'model.head_dim={model.head_dim}: use an even number, for RoPE turns '
      'pairs'
    )


def _build_world(config) -> world_lib.World:
  return world_lib.build_world(
    config.seed,
    config.world.size,
    max_operand=config.world.max_operand,
    sum_exposures=config.world.sum_exposures,
    held_out=config.world.held_out,
  )


def _write_corpus(folder: pathlib.Path, world: world_lib.World) -> dict:
  documents = corpus_lib.write_corpus(world)
  _write_jsonl(folder / 'documents.jsonl', (d.to_json() for d in documents))
  _write_jsonl(folder / 'ledger.jsonl', map(vars, world.facts))
  sums = sum(fact.relation == world_lib.SUM for fact in world.facts)
  return {
    'documents': len(documents),
    'people': len(world.people),
    'sums': sums,
  }


def _train_tokenizer(folder: pathlib.Path, corpus: Stage, settings) -> dict:
  texts = [_plain_text(row) for row in _read_documents(corpus)]
  model = training.train_sentencepiece(texts, settings.vocab_size)
  (folder / 'tokenizer.model').write_bytes(model)
  run_lib.write_json(
    str(folder / 'tokenizer_config.json'),
    {
      'tokenizer_class': 'LlamaTokenizer',
      'bos_token': '<s>',
      'eos_token': '</s>',
      'unk_token': '<unk>',
      'add_bos_token': True,
      'add_eos_token': False,
      'legacy': False,
      'chat_template': CHAT_TEMPLATE,
    },
  )
  tokenizer = load_tokenizer(folder)
  tokens = sum(len(tokenizer.encode(text, bos=False)) for text in texts)
  return {
    'vocab_size': tokenizer.vocab_size,
    'characters': sum(map(len, texts)) / tokens,
  }


def _train(
  folder: pathlib.Path,
  config: ml_collections.ConfigDict,
  corpus: Stage,
  tokenizer: Stage,
  workdir: pathlib.Path,
) -> dict:
  """Trains from scratch; writes `params.npz` and the run's metrics."""
  tok = load_tokenizer(tokenizer.folder)
  documents = [_encode(tok, row) for row in _read_documents(corpus)]
  batches = packing.packed_batches(
    documents,
    config.data.max_length,
    config.train.batch_size,
    config.seed,
  )
  tx = optim.make_optimizer(config.optim, config.train.steps)
  schedule = optim.make_schedule(config.optim, config.train.steps)
  state = state_lib.init_state(
    _fresh_params(config, tok), tx, jax.random.key(config.seed)
  )
  advance = jax.jit(
    step.make_train_step(
      _make_loss(_model_config(config, tok)),
      tx,
      clip_norm=config.optim.clip_norm,
    ),
    donate_argnums=0,
  )
  (workdir / 'metrics.jsonl').unlink(missing_ok=True)
  rows = []
  began = last = time.perf_counter()
  with report.progress_bar('steps') as bar:
    task = bar.add_task('training', total=config.train.steps)
    for done in range(config.train.steps):
      rng = state_lib.step_key(state)
      state, metrics = advance(state, next(batches), rng)
      metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
      now = time.perf_counter()
      row = {'step': done + 1, 'loss': metrics.pop('loss')}
      row['tokens'] = int(metrics.pop('weight'))
      row['tokens_per_s'] = row['tokens'] / (now - last)
      row |= {'lr': float(schedule(done)), **metrics}
      last = now
      run_lib.append_metrics(str(workdir), row)
      rows.append(row)
      bar.update(task, advance=1, description=f'loss {row["loss"]:.3f}')
  np.savez(folder / 'params.npz', **_flatten(jax.device_get(state.params)))
  last_rows = rows[-min(20, len(rows)) :]
  return {
    'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
    'tokens': sum(row['tokens'] for row in rows),
    'seconds': last - began,
    'first_loss': rows[0]['loss'],
    'loss': float(np.mean([row['loss'] for row in last_rows])),
  }


def _make_loss(config: ModelConfig):
  model = Transformer(config)

  def loss_fn(params, frozen, batch, keys):
    del frozen, keys  # all is trained, nothing is drawn
    targets, weights = language.next_token_targets(
      batch['tokens'], batch['loss_mask'], batch['segment_ids']
    )
    logits, _ = model.apply(
      {'params': params},
      batch['tokens'],
      positions=batch['positions'],
      segment_ids=batch['segment_ids'],
    )
    loss_sum, weight_sum, sums = language.cross_entropy_loss(
      logits, targets, weights
    )
    return loss_sum, weight_sum, {'accuracy': sums['correct']}

  return loss_fn


def _export(
  folder: pathlib.Path,
  config: ml_collections.ConfigDict,
  tokenizer: Stage,
  trained: Stage,
) -> dict:
  tok = load_tokenizer(tokenizer.folder)
  with np.load(trained.folder / 'params.npz') as arrays:
    params = _unflatten(dict(arrays))
  hf.save_hf(str(folder), _model_config(config, tok), params, tokenizer=tok)
  return {}


def _model_config(config, tok: Tokenizer) -> ModelConfig:
  return ModelConfig(
    vocab_size=tok.vocab_size,
    tie_embeddings=True,
    bos_id=tok.bos_id,
    eos_ids=tok.eos_ids,
    **config.model.to_dict(),
  )


def _fresh_params(config, tok: Tokenizer):
  rng = jax.random.fold_in(jax.random.key(config.seed), 0)
  return init_params(_model_config(config, tok), rng)


def _encode(tok: Tokenizer, row: dict) -> list[int]:
  """A document's ids: BOS, the text, EOS; for a dialogue as in a chat."""
  if 'text' in row:
    return [*tok.encode(row['text']), *tok.eos_ids[:1]]
  return chat.encode(tok, row['messages'], add_generation_prompt=False)


def _plain_text(row: dict) -> str:
  if 'text' in row:
    return row['text']
  names = {'user': 'Question', 'assistant': 'Answer'}
  return ' '.join(
    f'{names[m["role"]]}: {m["content"]}' for m in row['messages']
  )


def _flatten(tree: dict, prefix: str = '') -> dict[str, np.ndarray]:
  out = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      out |= _flatten(value, f'{prefix}{key}/')
    else:
      out[prefix + key] = value
  return out


def _unflatten(flat: dict[str, np.ndarray]) -> dict:
  tree = {}
  for name, value in flat.items():
    *path, last = name.split('/')
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = value
  return tree


def _read_documents(corpus: Stage) -> list[dict]:
  with open(corpus.folder / 'documents.jsonl', encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def _write_jsonl(path: pathlib.Path, rows) -> None:
  with path.open('w', encoding='utf-8') as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + '\n')


def _tell(stage: Stage, text: str) -> None:
  """One line about a finished stage."""
  console = rich_console.Console(highlight=False, soft_wrap=True)
  note = ' [dim](done before)[/dim]' if stage.skipped else ''
  text = text.format(**stage.summary)
  console.print(f'[bold]{stage.folder.name:<10}[/bold]{text}{note}')
