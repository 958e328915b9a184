"""The exam of a world: every question asked, every answer marked."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import ml_collections
from rich import console as rich_console
from rich import table as rich_table

from llm.data.worlds import corpus as corpus_lib
from llm.data.worlds import world as world_lib
from llm.data.worlds.corpus import Question
from llm.models.transformer import Transformer
from llm.tasks import generate as generate_task
from llm.tasks import loading, report
from llm.tasks import requests as requests_lib
from llm.tasks.answers import generate_rows, make_rows, plan_decoding
from llm.tasks.stages import Stage

POPULAR = 16  # statements from which on a fact counts as popular
GROUPS = (
  'popular people, asked in training',
  'popular people, only read about',
  'rare people',
  'people: never written',
  'sums: written',
  'sums: never written',
)
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
  model_folder: pathlib.Path,
  *,
  untrained: Any,
  settings: ml_collections.ConfigDict,
) -> dict:
  """Asks a saved model about every fact, greedily, and marks its answers.

  The answers come from the same run as `configs/generate.py`, which prints the
  times of both phases. Writes `questions.jsonl`, `answers.jsonl` (its rows, in
  that order) and `marks.jsonl` to `folder`.

  Args:
    folder: for the files.
    world: the ledger.
    model_folder: a Hugging Face folder.
    untrained: parameters of the same shape before training, for contrast.
    settings: `batch_size`; `max_new_tokens` of an answer and `text_tokens` of
      a free text.

  Returns:
    `questions` (how many), `groups` (name: questions, right, untrained),
    `texts` (what the model goes on to write about popular people) and
    `result`, the shares of right answers by short names.
  """
  questions = corpus_lib.write_exam(world)
  _write_jsonl(
    folder / 'questions.jsonl',
    [{'messages': _messages(question)} for question in questions]
    + [
      {'prompt': person, 'sampling': {'max_new_tokens': settings.text_tokens}}
      for person in world.people[:TEXTS]
    ],
  )
  config = _generate_config(folder, model_folder, settings)
  generate_task.run(config, None)
  rows = _read_jsonl(folder / 'answers.jsonl')
  rows.sort(key=lambda row: row['index'])
  answers = [row['text'] for row in rows]
  before = _answer_untrained(config, untrained)
  marks = [
    {
      'question': question.text,
      'truth': question.answer,
      'answer': answer.strip(),
      'right': corpus_lib.is_right(question, answer),
      'untrained': corpus_lib.is_right(question, other),
      'group': group_of(question.fact),
      'fact': vars(question.fact),
    }
    for question, answer, other in zip(questions, answers, before, strict=False)
  ]
  _write_jsonl(folder / 'marks.jsonl', marks)
  texts = zip(world.people, answers[len(questions) :], strict=False)
  return {
    'questions': len(questions),
    'groups': _count(marks),
    'texts': [person + text for person, text in texts],
    'result': _shares(marks),
  }


def print_report(exam: Stage) -> None:
  """Prints the table of marks, some answers and some free text."""
  console = rich_console.Console(highlight=False)
  marks = _read_jsonl(exam.folder / 'marks.jsonl')
  table = rich_table.Table('right answers', box=None, pad_edge=False)
  for name in ('trained', 'untrained', 'questions'):
    table.add_column(name, justify='right')
  for name, group in exam.summary['groups'].items():
    total = group['questions']
    shares = [f'{group[key] / total:.0%}' for key in ('right', 'untrained')]
    table.add_row(name, *shares, str(total))
  console.print(table)
  console.print()
  examples = rich_table.Table(
    'question', 'answer', 'truth', box=None, pad_edge=False
  )
  for i, group in enumerate(exam.summary['groups']):
    found = [mark for mark in marks if mark['group'] == group]
    mark = found[7 * i % len(found)]  # of another relation in each group
    style = 'green' if mark['right'] else 'red'
    answer = mark['answer'].replace('[', r'\[')
    examples.add_row(
      mark['question'], f'[{style}]{answer}[/{style}]', mark['truth']
    )
  console.print(examples)
  for text in exam.summary['texts']:
    console.print()
    console.print(text, markup=False)


def _answer_untrained(config, params: Any) -> list[str]:
  """The answers of a generate run with other parameters, in order."""
  source = loading.open_model(config)
  loaded = loading.Loaded(source, Transformer(source.config), params)
  requests = requests_lib.read_requests(
    config.prompts_file,
    source.tokenizer,
    requests_lib.run_sampling(config.sampling),
    source.limits,
  )
  rows = make_rows(requests, config)
  # The same sizes as in the run itself, so nothing is compiled again.
  decoding = plan_decoding(config, rows)
  answers = []
  for first in range(0, len(rows), decoding.batch_size):
    part = rows[first : first + decoding.batch_size]
    results = generate_rows(loaded, part, decoding, report.Phases())
    answers += [result['text'] for result in results]
  return answers


def _generate_config(folder, model_folder, settings):
  """The fields of `configs/generate.py` for the exam's run."""
  return ml_collections.ConfigDict(
    {
      'task': 'generate',
      'model': {'path': str(model_folder)},
      'tokenizer': {'path': None},
      'prompt': None,
      'prompts_file': str(folder / 'questions.jsonl'),
      'chat': False,
      'output': str(folder / 'answers.jsonl'),
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


def _messages(question: Question) -> list[dict]:
  return [{'role': 'user', 'content': question.text}]


def _count(marks: list[dict]) -> dict[str, dict[str, int]]:
  groups = {}
  for name in GROUPS:
    found = [mark for mark in marks if mark['group'] == name]
    if found:
      groups[name] = {
        'questions': len(found),
        'right': sum(mark['right'] for mark in found),
        'untrained': sum(mark['untrained'] for mark in found),
      }
  return groups


def _shares(marks: list[dict]) -> dict[str, float]:
  """Shares of right answers about all that was written, and before training."""
  shares = {}
  for name, is_sum in (('facts', False), ('sums', True)):
    found = [
      mark
      for mark in marks
      if (mark['fact']['relation'] == world_lib.SUM) == is_sum
      and mark['fact']['stated']
    ]
    for key in ('right', 'untrained') if found else ():
      shares[f'{name}_{key}'] = sum(m[key] for m in found) / len(found)
  return shares


def _read_jsonl(path: pathlib.Path) -> list[dict]:
  with path.open(encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def _write_jsonl(path: pathlib.Path, rows: Sequence[dict]) -> None:
  with path.open('w', encoding='utf-8') as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + '\n')
