"""A world written out: documents to train on, and an exam with its marking."""

import dataclasses
import random

from llm.data.worlds import sentences
from llm.data.worlds import world as world_lib
from llm.data.worlds.world import SUM, Fact, World

MAX_SENTENCES = 6  # of one paragraph
MAX_TURNS = 3  # questions in one dialogue


@dataclasses.dataclass(frozen=True)
class Document:
  """Plain `text`, or a dialogue `messages` of (role, content) pairs.

  `facts` are the ledger's keys (subject, relation) that the document states or
  asks about, in the order of its sentences or questions.
  """

  text: str
  messages: tuple[tuple[str, str], ...]
  facts: tuple[tuple[str, str], ...]

  def to_json(self) -> dict:
    """The row of a JSONL file: `text` or `messages`, as training reads it."""
    if not self.messages:
      return {'text': self.text}
    return {
      'messages': [
        {'role': role, 'content': content} for role, content in self.messages
      ]
    }


@dataclasses.dataclass(frozen=True)
class Question:
  """One exam question; `fact` is the entry of the ledger it asks about."""

  text: str
  answer: str
  fact: Fact

  @property
  def messages(self) -> list[dict]:
    """The question as a conversation of one turn."""
    return [{'role': 'user', 'content': self.text}]


@dataclasses.dataclass(frozen=True)
class Pair:
  """A question with the ledger's answer and a false one of the same kind."""

  question: Question
  false: str

  def to_json(self) -> dict:
    """The row of a JSONL file, as preference training reads it."""
    return {
      'prompt': self.question.messages,
      'chosen': self.question.answer,
      'rejected': self.false,
    }


def write_corpus(world: World, seed: int = 0) -> list[Document]:
  """Writes every fact exactly `stated` times and asks it `asked` times.

  A paragraph is about one person (or has sums only); dialogues mix questions
  about everything. The documents come in a random order. `seed` determines
  order and wording, nothing else.
  """
  rng = world_lib.generator(world.seed, seed, 'corpus')
  documents = _paragraphs(world, rng) + _dialogues(world, rng)
  return world_lib.shuffled(rng, documents)


def write_exam(world: World, wording: int = 0) -> list[Question]:
  """One question about each fact of the ledger, in the ledger's order."""
  return [
    Question(sentences.question(fact, wording), fact.object, fact)
    for fact in world.facts
  ]


def write_pairs(world: World, seed: int = 0) -> list[Pair]:
  """A pair in each wording about each written fact of a person.

  False answers are drawn from what the ledger has for other people. The pairs
  come in a random order. Facts that are held out have no pair.
  """
  rng = world_lib.generator(world.seed, seed, 'pairs')
  pairs = []
  for fact in world.facts:
    if fact.relation == SUM or fact.held_out:
      continue
    others = [
      value
      for value in world_lib.values(world, fact.relation)
      if value not in (fact.object, fact.subject)
    ]
    for wording in range(len(sentences.QUESTIONS[fact.relation])):
      text = sentences.question(fact, wording)
      question = Question(text, fact.object, fact)
      pairs.append(Pair(question, world_lib.pick(rng, others)))
  return world_lib.shuffled(rng, pairs)


def is_right(question: Question, answer: str) -> bool:
  """Whether `answer` is the ledger's object, up to space and a full stop."""
  return answer.strip().removesuffix('.') == question.answer


def _paragraphs(world: World, rng: random.Random) -> list[Document]:
  groups = {}
  for fact in world.facts:
    topic = SUM if fact.relation == SUM else fact.subject
    groups.setdefault(topic, []).append(fact)
  documents = []
  for facts in groups.values():
    for round_ in range(max(fact.stated for fact in facts)):
      due = [fact for fact in facts if fact.stated > round_]
      for part in _split(rng, due, MAX_SENTENCES):
        text = ' '.join(
          sentences.statement(fact, rng, follows=i > 0)
          for i, fact in enumerate(part)
        )
        documents.append(Document(text, (), _keys(part)))
  return documents


def _dialogues(world: World, rng: random.Random) -> list[Document]:
  asked = [fact for fact in world.facts for _ in range(fact.asked)]
  documents = []
  for part in _split(rng, asked, MAX_TURNS):
    messages = []
    for fact in part:
      wording = int(rng.random() * len(sentences.QUESTIONS[fact.relation]))
      messages.append(('user', sentences.question(fact, wording)))
      messages.append(('assistant', fact.object))
    documents.append(Document('', tuple(messages), _keys(part)))
  return documents


def _split(rng: random.Random, facts: list[Fact], most: int) -> list[list]:
  """Random parts of 1 to `most` facts, in a random order."""
  facts = world_lib.shuffled(rng, facts)
  parts, start = [], 0
  while start < len(facts):
    size = 1 + int(rng.random() * most)
    parts.append(facts[start : start + size])
    start += size
  return parts


def _keys(facts: list[Fact]) -> tuple[tuple[str, str], ...]:
  return tuple((fact.subject, fact.relation) for fact in facts)
