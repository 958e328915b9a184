"""The run `quickstart`: world, tokenizer, model and exam, from nothing.

Six stages, each a folder of the workdir (see `llm.tasks.stages`):
  corpus     the world's ledger, and what is written about it
  tokenizer  a SentencePiece model with a chat template
  pretrain   a run of `configs/pretrain.py` on the texts
  sft        a run of `configs/sft.py` on the dialogues, from that model
  model      the result, a Hugging Face folder
  exam       questions, answers and their marks
"""

import functools
import json
import pathlib
import shutil

import jax
import ml_collections
import numpy as np
from rich import console as rich_console

from llm.data.worlds import corpus as corpus_lib
from llm.data.worlds import world as world_lib
from llm.errors import UserError
from llm.tasks import exam, supervised, training_report
from llm.tasks import run as run_lib
from llm.tasks.stages import Stage, run_stage
from llm.tasks.training_fields import training_fields
from llm.text import training as tokenizer_training
from llm.text.tokenizer import load_tokenizer
from llm.train import optim

DEFAULT_WORKDIR = 'runs/quickstart'
TEXTS, DIALOGUES = 'texts.jsonl', 'dialogues.jsonl'  # of the corpus
# "<s> Question: … …</s>": the answer follows the question at once, as it does
# in the texts' quizzes. A word between them ("Answer:") would be a place where
# a model this small has never looked anything up, and what it is tuned on would
# hardly carry over to what it only read (docs/quickstart.md has the numbers).
CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{ ' Question: ' + message.content }}
  {%- elif message.role == 'assistant' -%}
    {{ ' ' + message.content + eos_token }}
  {%- else -%}
    {{ raise_exception('roles are user and assistant') }}
  {%- endif -%}
{%- endfor -%}
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
    run_lib.run_task(config, DEFAULT_WORKDIR)
    return
  # What a later stage would refuse is refused before any work.
  _check(config)
  world = _build_world(config)
  pretrained, tuned, model = _make_model(config, world, pathlib.Path(workdir))
  marks = run_stage(
    workdir,
    'exam',
    model.inputs | {'exam': config.exam.to_dict()},
    lambda folder: exam.hold_exam(
      folder,
      world,
      model.folder,
      pretrained=pretrained.folder / 'model',
      settings=config.exam,
    ),
  )
  _tell(marks, 'all {questions} questions that the ledger can answer')
  exam.print_report(marks)
  result = {}
  for stage in (pretrained, tuned):
    for key in ('loss', 'seconds'):
      result[f'{stage.folder.name}_{key}'] = stage.summary[key]
  run_lib.write_result(str(workdir), result | marks.summary['result'])


def _make_model(
  config: ml_collections.ConfigDict,
  world: world_lib.World,
  workdir: pathlib.Path,
) -> tuple[Stage, Stage, Stage]:
  """The stages up to the Hugging Face folder; returns the last three."""
  inputs = {'seed': config.seed, 'world': config.world.to_dict()}
  corpus = run_stage(
    workdir,
    'corpus',
    inputs,
    lambda folder: _write_corpus(folder, world, config.world.quizzes),
  )
  _tell(
    corpus,
    '{texts:,} texts and {dialogues:,} dialogues about {people} people and '
    '{sums} sums',
  )

  inputs |= {'tokenizer': config.tokenizer.to_dict()}
  tokenizer = run_stage(
    workdir,
    'tokenizer',
    inputs,
    lambda folder: _train_tokenizer(folder, corpus, config.tokenizer),
  )
  _tell(tokenizer, '{vocab_size} tokens of {characters:.1f} characters')

  stages = []
  for kind, groups in (('pretrain', ('model', 'data')), ('sft', ())):
    inputs |= {name: config[name].to_dict() for name in (*groups, kind)}
    fields = training_config(config, kind)
    build = functools.partial(_train, fields, workdir, kind)
    stage = run_stage(workdir, kind, inputs, build, in_place=True)
    _tell(
      stage,
      '{parameters:,} parameters, {tokens:,} tokens in {seconds:.0f} s, '
      'loss {first_loss:.2f} to {loss:.2f} nats',
    )
    stages.append(stage)

  model = run_stage(
    workdir, 'model', inputs, functools.partial(_copy_model, stages[-1])
  )
  _tell(model, 'a folder for transformers and configs/generate.py')
  return *stages, model


def training_config(
  config: ml_collections.ConfigDict, kind: str
) -> ml_collections.ConfigDict:
  """The config of a training stage, but for its paths.

  Args:
    config: see `configs/quickstart.py`.
    kind: 'pretrain' or 'sft', the name of the stage and of its run.
  """
  fields, stage = training_fields(kind), config[kind]
  fields.seed = fields.data.seed = config.seed
  fields.data.max_length = config.data.max_length
  for name in ('steps', 'batch_size', 'checkpoint_every'):
    fields.train[name] = stage[name]
  fields.train.keep = 1
  fields.optim = stage.optim
  fields.loss.name = 'cross_entropy'
  fields.loss.neftune_alpha = 0.0
  if kind == 'pretrain':
    fields.model.update(config.model)
  return fields


def _check(config) -> None:
  if config.seed < 0:
    raise UserError(f'seed={config.seed}: use 0 or more')
  _check_positive(config.model, 'model')
  _check_positive(config.data, 'data')
  _check_positive(config.exam, 'exam')
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
  if config.data.max_length > model.max_length:
    raise UserError(
      f'data.max_length={config.data.max_length}: use at most '
      f'model.max_length={model.max_length}'
    )
  for kind in ('pretrain', 'sft'):
    stage = config[kind]
    _check_positive(stage, kind)
    if stage.batch_size % jax.device_count():
      raise UserError(
        f'{kind}.batch_size={stage.batch_size}: use a multiple of the '
        f'{jax.device_count()} devices'
      )
    try:
      optim.make_optimizer(stage.optim, stage.steps)
    except UserError as error:
      raise UserError(f'{kind}: {error}') from None


def _check_positive(group, name: str) -> None:
  for key, value in group.items():
    if isinstance(value, int) and value < 1:
      raise UserError(f'{name}.{key}={value}: use 1 or more')


def _build_world(config) -> world_lib.World:
  return world_lib.build_world(
    config.seed,
    config.world.size,
    max_operand=config.world.max_operand,
    sum_exposures=config.world.sum_exposures,
    held_out=config.world.held_out,
  )


def _write_corpus(
  folder: pathlib.Path, world: world_lib.World, quizzes: bool
) -> dict:
  rows = [document.to_json() for document in corpus_lib.write_corpus(world)]
  dialogues = [row for row in rows if 'messages' in row]
  texts = [row for row in rows if 'text' in row]
  if quizzes:
    texts += [{'text': _quiz(row['messages'])} for row in dialogues]
  _write_jsonl(folder / TEXTS, texts)
  _write_jsonl(folder / DIALOGUES, dialogues)
  _write_jsonl(folder / 'ledger.jsonl', map(vars, world.facts))
  sums = sum(fact.relation == world_lib.SUM for fact in world.facts)
  return {
    'texts': len(texts),
    'dialogues': len(dialogues),
    'people': len(world.people),
    'sums': sums,
  }


def _train_tokenizer(folder: pathlib.Path, corpus: Stage, settings) -> dict:
  texts = [row['text'] for row in _read_jsonl(corpus.folder / TEXTS)]
  dialogues = _read_jsonl(corpus.folder / DIALOGUES)
  texts += [_chat(row['messages']) for row in dialogues]
  model = tokenizer_training.train_sentencepiece(texts, settings.vocab_size)
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
  fields: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  kind: str,
  folder: pathlib.Path,
) -> dict:
  """Runs the training task in the stage's folder; sets `fields`' paths."""
  if kind == 'pretrain':
    fields.tokenizer.path = str(workdir / 'tokenizer')
    fields.data.path = str(workdir / 'corpus' / TEXTS)
  else:
    fields.model.path = str(workdir / 'pretrain' / 'model')
    fields.data.path = str(workdir / 'corpus' / DIALOGUES)
  fields.export = str(folder / 'model')
  result = supervised.run(fields, str(folder))
  rows = training_report.read_rows(str(folder))
  return {
    'parameters': result['parameters'],
    'tokens': result['tokens'],
    # Of all steps, of which this process may have done the last ones only.
    'seconds': sum(row['tokens'] / row['tokens_per_s'] for row in rows),
    'first_loss': rows[0]['loss'],
    'loss': float(np.mean([row['loss'] for row in rows[-20:]])),
  }


def _copy_model(tuned: Stage, folder: pathlib.Path) -> dict:
  shutil.copytree(tuned.folder / 'model', folder, dirs_exist_ok=True)
  return {}


def _quiz(messages: list[dict]) -> str:
  """The same questions and answers as running text: "How old is …? 45. …"."""
  stops = {'user': '', 'assistant': '.'}
  return ' '.join(m['content'] + stops[m['role']] for m in messages)


def _chat(messages: list[dict]) -> str:
  """The words of the chat template."""
  names = {'user': 'Question: ', 'assistant': ''}
  return ' '.join(names[m['role']] + m['content'] for m in messages)


def _read_jsonl(path: pathlib.Path) -> list[dict]:
  with path.open(encoding='utf-8') as file:
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
