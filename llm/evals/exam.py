"""The exam of a world: a model answers every question, each answer is marked.

Here an answer is what a model says to a question of the world.
"""

import dataclasses
import pathlib

import jax
import ml_collections
from rich import console as rich_console
from rich import markup
from rich import table as rich_table

from llm.checkpoints.source import open_checkpoint
from llm.data.worlds import corpus as corpus_lib
from llm.data.worlds import world as world_lib
from llm.data.worlds.corpus import Question
from llm.data.worlds.quickstart import read_jsonl, write_jsonl
from llm.engine import loading
from llm.engine import phases as phases_lib
from llm.engine import requests as requests_lib
from llm.engine.completions import (
  TextModel,
  complete,
  output_row,
  plan_decoding,
)
from llm.engine.output import sample_keys
from llm.host import terminal
from llm.host.compile_clock import compile_clock
from llm.models.transformer import init_params
from llm.runs.stages import Stage

POPULAR = 16  # statements from which on a fact counts as popular
GROUPS = (
  'popular people, asked in training',
  'popular people, only read about',
  'rare people',
  'people: never written',
  'sums: written',
  'sums: never written',
)
UNTRAINED = 'untrained'
TEXTS = 3  # free texts, each begun with the name of a popular person


def group_of(fact: world_lib.Fact) -> str:
  """The group of `GROUPS` by which the exam is reported."""
  if fact.relation == world_lib.SUM:
    return GROUPS[5] if fact.held_out else GROUPS[4]
  if fact.held_out:
    return GROUPS[3]
  if fact.stated < POPULAR:
    return GROUPS[2]
  return GROUPS[0] if fact.asked else GROUPS[1]


def hold_exam(
  folder: pathlib.Path,
  world: world_lib.World,
  models: dict[str, pathlib.Path],
  *,
  settings: ml_collections.ConfigDict,
) -> dict:
  """Asks saved models about every fact, greedily, and marks their answers.

  For contrast the same questions go to a fresh model of the same shape,
  `UNTRAINED`.

  The answers come from the code of `configs/generate.py`, those of the last
  model with both phases timed. Writes `questions.jsonl`, its `answers.jsonl`
  (in the form and order of a generate run) and `marks.jsonl` to `folder`.

  Args:
    folder: for the files.
    world: the ledger.
    models: Hugging Face folders of models of one shape by their names, in the
      order in which they were trained, each from the one before.
    settings: `batch_size`; `max_new_tokens` of an answer and `text_tokens` of
      a free text.

  Returns:
    `questions` (how many), `models` (the names, with the untrained one),
    `groups` (name: questions, and how many of them each model answered right),
    `texts` (what the first model writes about popular people),
    `phases` (the lines of the table of both phases) and `result`, the shares
    of right answers and the speeds by short names.
  """
  questions = corpus_lib.write_exam(world)
  write_jsonl(
    folder / 'questions.jsonl',
    [{'messages': question.messages} for question in questions]
    + [
      {'prompt': person, 'sampling': {'max_new_tokens': settings.text_tokens}}
      for person in world.people[:TEXTS]
    ],
  )
  config = _generate_config(folder, [*models.values()][-1], settings)
  rows, phases = _answer(config, models, world.seed)
  write_jsonl(folder / 'answers.jsonl', rows[[*models][-1]])
  answers = {name: [row['text'] for row in rows[name]] for name in rows}
  marks = _mark(questions, answers)
  write_jsonl(folder / 'marks.jsonl', marks)
  # The pretrained model writes free text; the others only answer.
  written = zip(
    world.people, answers[[*models][0]][len(questions) :], strict=False
  )
  return {
    'questions': len(questions),
    'models': list(answers),
    'groups': _count(marks),
    'texts': [person + text for person, text in written],
    'phases': phases_lib.phase_table(phases),
    'result': _shares(marks) | phases_lib.phase_record(phases),
  }


def _answer(
  config, models: dict[str, pathlib.Path], seed: int
) -> tuple[dict[str, list[dict]], phases_lib.Phases]:
  """What each model answers, the untrained one first; the times of the last."""
  last = loading.load_weights(config, loading.open_model(config))
  phases = phases_lib.Phases()
  rows = {[*models][-1]: _generate(config, last, phases)}
  # Placed as the last ones are, or everything would be compiled again.
  places = jax.tree.map(lambda x: x.sharding, last.params)
  for name in (UNTRAINED, *models):
    if name in rows:
      continue
    if name == UNTRAINED:
      params = init_params(last.model.config, jax.random.key(seed))
    else:
      params = open_checkpoint(str(models[name])).load(last.model.dtype)
    other = dataclasses.replace(last, params=jax.device_put(params, places))
    rows[name] = _generate(config, other, phases_lib.Phases())
  return {name: rows[name] for name in (UNTRAINED, *models)}, phases


def print_report(exam: Stage) -> None:
  """Prints times, the table of marks, some answers and some free text."""
  terminal.print_table([tuple(row) for row in exam.summary['phases']])
  console = rich_console.Console(highlight=False)
  console.print()
  marks = read_jsonl(exam.folder / 'marks.jsonl')
  table = rich_table.Table(
    'right answers', box=None, pad_edge=False, collapse_padding=True
  )
  models = exam.summary['models']
  for name in (*models, 'of'):
    table.add_column(name, justify='right')
  for name, group in exam.summary['groups'].items():
    total = group['questions']
    shares = [f'{group[key] / total:.0%}' for key in models]
    table.add_row(name, *shares, str(total))
  console.print(table)
  console.print()
  examples = rich_table.Table(
    'question', 'answer', 'truth', models[1], box=None, pad_edge=False
  )
  for i, group in enumerate(exam.summary['groups']):
    found = [mark for mark in marks if mark['group'] == group]
    mark = found[7 * i % len(found)]  # of another relation in each group
    style = 'green' if mark['right'][models[-1]] else 'red'
    answer, before = (
      markup.escape(terminal.printable(mark['answers'][name]))
      for name in (models[-1], models[1])
    )
    examples.add_row(
      mark['question'],
      f'[{style}]{answer}[/{style}]',
      mark['truth'],
      f'[dim]{before}[/dim]',
    )
  console.print(examples)
  for text in exam.summary['texts']:
    console.print()
    console.print(text, markup=False)


def _mark(
  questions: list[Question], answers: dict[str, list[str]]
) -> list[dict]:
  """One row per question; what follows the answers to questions is ignored."""
  marks = []
  for i, question in enumerate(questions):
    given = {name: texts[i] for name, texts in answers.items()}
    marks.append(
      {
        'question': question.text,
        'truth': question.answer,
        'answers': {name: text.strip() for name, text in given.items()},
        'right': {
          name: corpus_lib.is_right(question, text)
          for name, text in given.items()
        },
        'group': group_of(question.fact),
        'fact': vars(question.fact),
      }
    )
  return marks


def _generate(
  config, text_model: TextModel, phases: phases_lib.Phases
) -> list[dict]:
  """What a generate run of `config` would write, in order; adds to `phases`."""
  compile_clock()  # from here on, so that no phase counts compilation
  samples = requests_lib.make_samples(
    requests_lib.read_requests(
      config.prompts_file,
      text_model.tokenizer,
      requests_lib.run_sampling(config.sampling),
      text_model.limits,
    )
  )
  keys = sample_keys(samples, loading.files_of(config), config.dtype)
  decoding = plan_decoding(config, samples)
  rows = []
  with terminal.progress_bar('answers') as bar:
    task = bar.add_task('exam', total=len(samples))
    completions = complete(text_model, samples, decoding, phases=phases)
    for key, sample, completion in zip(keys, samples, completions, strict=True):
      rows.append(output_row(key, sample, completion, text_model.tokenizer))
      bar.advance(task)
  return rows


def _generate_config(folder, model_folder, settings):
  """The fields of `configs/generate.py` that the exam needs."""
  return ml_collections.ConfigDict(
    {
      'model': {'path': str(model_folder)},
      'lora': {'path': None},
      'tokenizer': {'path': None},
      'prompts_file': str(folder / 'questions.jsonl'),
      'dtype': 'float32',
      'batch_size': settings.batch_size,
      'max_length': None,
      'chunk_steps': 16,
      'prefill_chunk': None,
      'sampling': {
        'temperature': 0.0,
        'max_new_tokens': settings.max_new_tokens,
      },
    }
  )


def _count(marks: list[dict]) -> dict[str, dict[str, int]]:
  groups = {}
  for name in GROUPS:
    found = [mark for mark in marks if mark['group'] == name]
    if found:
      groups[name] = {
        'questions': len(found),
        **{
          key: sum(mark['right'][key] for mark in found)
          for key in found[0]['right']
        },
      }
  return groups


def _shares(marks: list[dict]) -> dict[str, float]:
  """Shares of right answers about all that was written, of each model."""
  shares = {}
  for name, is_sum in (('facts', False), ('sums', True)):
    found = [
      mark
      for mark in marks
      if (mark['fact']['relation'] == world_lib.SUM) == is_sum
      and mark['fact']['stated']
    ]
    for key in found[0]['right'] if found else ():
      right = sum(mark['right'][key] for mark in found)
      shares[f'{name}_{key}'] = right / len(found)
  return shares
