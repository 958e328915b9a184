"""One fact in words: sentences and questions, several wordings each.

A model that read a fact in one wording only can hardly answer a question about
it (https://arxiv.org/abs/2309.14316), hence the paraphrases.
"""

import random

from llm.data.worlds import world as world_lib
from llm.data.worlds.world import Fact

# {s} subject, {o} object, {p} She or He. The first of each list needs no
# context; with a pronoun a sentence must follow one that names the person.
STATEMENTS = {
  'town': (
    '{s} lives in {o}.',
    'The home of {s} is in {o}.',
    '{s} has a house in {o}.',
    'You can find {s} in {o}.',
    '{o} is the town where {s} lives.',
  ),
  'job': (
    '{s} works as a {o}.',
    '{s} is a {o}.',
    '{s} earns a living as a {o}.',
    'The job of {s} is that of a {o}.',
    'People know {s} as a good {o}.',
  ),
  'age': (
    '{s} is {o} years old.',
    'The age of {s} is {o}.',
    '{s} turned {o} this year.',
    'At the age of {o}, {s} still likes to learn.',
  ),
  'friend': (
    'The best friend of {s} is {o}.',
    '{s} often meets a best friend, {o}.',
    '{s} trusts nobody more than {o}.',
    '{s} calls {o} a best friend.',
  ),
  'colour': (
    'The favourite colour of {s} is {o}.',
    '{s} likes the colour {o} best.',
    '{s} always wears something {o}.',
    '{s} painted the front door {o}.',
  ),
  'pet': (
    '{s} has a pet {o}.',
    'The pet of {s} is a {o}.',
    '{s} takes good care of a {o}.',
    'At home, {s} keeps a {o}.',
  ),
  'sum': (
    '{s} = {o}.',
    '{s} is {o}.',
    '{s} makes {o}.',
    'The sum {s} is equal to {o}.',
  ),
}

WITH_PRONOUN = {
  'town': ('{p} lives in {o}.', '{p} has a house in {o}.'),
  'job': ('{p} works as a {o}.', '{p} is a {o}.'),
  'age': ('{p} is {o} years old.', '{p} turned {o} this year.'),
  'friend': (
    '{p} trusts nobody more than {o}.',
    '{p} calls {o} a best friend.',
  ),
  'colour': (
    '{p} likes the colour {o} best.',
    '{p} always wears something {o}.',
  ),
  'pet': ('{p} has a pet {o}.', '{p} takes good care of a {o}.'),
}

QUESTIONS = {
  'town': ('Where does {s} live?', 'In which town does {s} live?'),
  'job': ('What is the job of {s}?', 'What does {s} work as?'),
  'age': ('How old is {s}?', 'What is the age of {s}?'),
  'friend': (
    'Who is the best friend of {s}?',
    'Whom does {s} call a best friend?',
  ),
  'colour': (
    'What is the favourite colour of {s}?',
    'Which colour does {s} like best?',
  ),
  'pet': ('What pet does {s} have?', 'Which animal does {s} keep?'),
  'sum': ('What is {s}?', 'How much is {s}?'),
}


def statement(fact: Fact, rng: random.Random, *, follows=False) -> str:
  """A sentence that states `fact`.

  Args:
    fact: of a person or a sum.
    rng: for the wording.
    follows: the sentence before names the same person, so that in half of the
      cases a pronoun stands for the name.
  """
  templates = STATEMENTS[fact.relation]
  if follows and fact.relation in WITH_PRONOUN and rng.random() < 0.5:
    templates = WITH_PRONOUN[fact.relation]
  return _fill(world_lib.pick(rng, templates), fact)


def question(fact: Fact, wording: int = 0) -> str:
  """The question whose answer is `fact.object`; `wording` counts modulo."""
  templates = QUESTIONS[fact.relation]
  return _fill(templates[wording % len(templates)], fact)


def _fill(template: str, fact: Fact) -> str:
  return template.format(
    s=fact.subject,
    o=fact.object,
    p=world_lib.pronoun(fact.subject),
  )
