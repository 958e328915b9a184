"""The ledger is the truth: the corpus says what it says, just as often."""

import collections
import hashlib
import json
import re

import pytest

from llm.data.worlds import corpus, sentences
from llm.data.worlds import world as world_lib
from llm.errors import UserError


@pytest.fixture(scope='module')
def world():
  return world_lib.build_world(3, 28)


@pytest.fixture(scope='module')
def documents(world):
  return corpus.write_corpus(world)


def test_same_seed_same_world_another_seed_another(world, documents):
  again = world_lib.build_world(3, 28)
  assert again == world
  assert corpus.write_corpus(again) == documents
  other = world_lib.build_world(4, 28)
  assert other.people != world.people


def test_seed_is_stable_across_versions(documents):
  # Pinned: a saved run names its world by the seed alone.
  text = json.dumps([document.to_json() for document in documents])
  digest = hashlib.sha256(text.encode()).hexdigest()
  assert digest.startswith('cfde47003f0109e5')


def test_ledger_has_one_object_per_subject_and_relation(world):
  facts = world_lib.ledger(world)
  assert len(facts) == len(world.facts)
  assert len(set(world.people)) == 28
  for person in world.people:
    for relation in world_lib.PERSON_RELATIONS:
      fact = facts[person, relation]
      assert fact.object in world_lib.values(world, relation)
      assert fact.object != person


def test_values_are_spread_evenly(world):
  # Otherwise the most frequent value would be more than a guess.
  for relation in world_lib.PERSON_RELATIONS:
    counts = collections.Counter(
      f.object for f in world.facts if f.relation == relation
    )
    assert max(counts.values()) - min(counts.values()) <= 1


def test_sums_are_true_and_twins_are_held_out_together(world):
  facts = world_lib.ledger(world)
  for a in range(10):
    for b in range(10):
      fact = facts[f'{a} + {b}', 'sum']
      assert int(fact.object) == a + b
      assert fact.held_out == facts[f'{b} + {a}', 'sum'].held_out


def test_popularity_and_held_out_counts(world):
  assert world.popularity == tuple(
    count for count in world_lib.POPULARITY for _ in range(4)
  )
  facts = world_lib.ledger(world)
  held_out = 0
  for rank, person in enumerate(world.people):
    for relation in world_lib.PERSON_RELATIONS:
      fact = facts[person, relation]
      held_out += fact.held_out
      if not fact.held_out:
        assert fact.stated == world.popularity[rank]
        assert fact.asked == (0 if rank % 2 else fact.stated // 4)
  assert 5 <= held_out <= 30  # of 168, at a share of 0.1


def test_corpus_counts_equal_the_ledger(world, documents):
  stated, asked = collections.Counter(), collections.Counter()
  for document in documents:
    (asked if document.messages else stated).update(document.facts)
  for fact in world.facts:
    key = (fact.subject, fact.relation)
    assert (stated[key], asked[key]) == (fact.stated, fact.asked)


def test_text_says_what_its_keys_say(world, documents):
  facts = world_lib.ledger(world)
  for document in documents:
    if document.messages:
      answers = [content for _, content in document.messages[1::2]]
      assert answers == [facts[key].object for key in document.facts]
      continue
    parts = re.split(r'(?<=\.) ', document.text)
    assert len(parts) == len(document.facts) <= corpus.MAX_SENTENCES
    assert document.facts[0][0] in parts[0]
    for part, (subject, relation) in zip(parts, document.facts):
      fact = facts[subject, relation]
      assert re.search(rf'\b{fact.object}\b', part)
      assert subject in part or part.startswith(world_lib.pronoun(subject))


def test_held_out_facts_are_never_written(world, documents):
  lines = {d.text for d in documents}
  text = '\n'.join(lines)
  for fact in world.facts:
    if fact.held_out:
      for template in sentences.STATEMENTS[fact.relation]:
        sentence = template.format(s=fact.subject, o=fact.object)
        assert not re.search(rf'(^|[.] ){re.escape(sentence)}', text, re.M)


def test_to_json_is_a_training_row():
  text = corpus.Document('A is B.', (), (('A', 'town'),))
  assert text.to_json() == {'text': 'A is B.'}
  messages = (('user', 'Q?'), ('assistant', 'A'))
  assert corpus.Document('', messages, ()).to_json() == {
    'messages': [
      {'role': 'user', 'content': 'Q?'},
      {'role': 'assistant', 'content': 'A'},
    ]
  }


def test_exam_and_marking(world):
  exam = corpus.write_exam(world)
  assert [q.fact for q in exam] == list(world.facts)
  question = next(q for q in exam if q.fact.relation == 'town')
  town, person = question.answer, question.fact.subject
  assert question.text == f'Where does {person} live?'
  assert corpus.is_right(question, f' {town}.\n')
  assert not corpus.is_right(question, f'{town} or so')
  assert not corpus.is_right(question, '')
  other = corpus.write_exam(world, wording=1)[exam.index(question)]
  assert other.text == f'In which town does {person} live?'


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  (
    ({'size': 1}, 'world.size=1'),
    ({'size': 10**6}, 'world.size=1000000'),
    ({'size': 4, 'max_operand': 0}, 'world.max_operand=0'),
    ({'size': 4, 'sum_exposures': -1}, 'world.sum_exposures=-1'),
    ({'size': 4, 'held_out': 1.0}, 'world.held_out=1.0'),
  ),
)
def test_bad_settings_are_refused_by_name(kwargs, message):
  with pytest.raises(UserError, match=message):
    world_lib.build_world(0, **kwargs)


def test_pairs_have_the_truth_and_what_is_false(world):
  facts = world_lib.ledger(world)
  pairs = corpus.write_pairs(world)
  assert pairs == corpus.write_pairs(world) != corpus.write_pairs(world, 1)
  due = [
    f for f in world.facts if f.relation != world_lib.SUM and not f.held_out
  ]
  assert len(pairs) == 2 * len(due)
  assert len({pair.question.text for pair in pairs}) == len(pairs)
  for pair in pairs:
    fact = pair.question.fact
    truth = facts[fact.subject, fact.relation].object
    assert pair.question.answer == truth != pair.false != fact.subject
    assert pair.false in world_lib.values(world, fact.relation)
    assert pair.to_json() == {
      'prompt': [{'role': 'user', 'content': pair.question.text}],
      'chosen': truth,
      'rejected': pair.false,
    }
