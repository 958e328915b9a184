"""A world: people and sums with an explicit ledger of what is true.

Everything is a pure function of the seed. All draws come from
`random.Random.random`, the one method whose sequence Python promises to keep,
so a seed gives the same world on every version and platform.
"""

from collections.abc import Sequence
import dataclasses
import random

from llm.data.worlds import names
from llm.errors import UserError

PERSON_RELATIONS = ('town', 'job', 'age', 'friend', 'colour', 'pet')
SUM = 'sum'
POPULARITY = (64, 32, 16, 8, 4, 2, 1)  # statements of each fact of a person
MAX_PEOPLE = (len(names.SHE_NAMES) + len(names.HE_NAMES)) * len(
  names.LAST_NAMES
)
_VALUES = {
  'town': names.TOWNS,
  'job': names.JOBS,
  'age': tuple(str(age) for age in range(20, 80)),
  'colour': names.COLOURS,
  'pet': names.PETS,
}


@dataclasses.dataclass(frozen=True)
class Fact:
  """`relation` of `subject` is `object`, and how often the corpus has it.

  `stated` counts the sentences, `asked` the questions with their answer. A fact
  with both at 0 is held out: it is true and never written.
  """

  subject: str
  relation: str
  object: str
  stated: int
  asked: int

  @property
  def held_out(self) -> bool:
    return not self.stated and not self.asked


@dataclasses.dataclass(frozen=True)
class World:
  """The ground truth. `popularity[i]` belongs to `people[i]`.

  A sum is a fact too: Fact('3 + 4', 'sum', '7', …).
  """

  seed: int
  people: tuple[str, ...]
  popularity: tuple[int, ...]
  facts: tuple[Fact, ...]


def build_world(
  seed: int,
  size: int,
  *,
  max_operand: int = 9,
  sum_exposures: int = 8,
  held_out: float = 0.1,
) -> World:
  """Builds the world of `seed` with `size` people.

  People fall into equal classes of popularity: every fact of a person is
  stated `POPULARITY[class]` times, and for half of the people of each class
  also asked a quarter as often. A share `held_out` of the facts is never
  written; with a sum a + b its twin b + a is held out too, so that neither
  gives the other away.

  Args:
    seed: determines the world.
    size: number of people, 2 to `MAX_PEOPLE`.
    max_operand: sums a + b are true for all 0 <= a, b <= max_operand.
    sum_exposures: how often each sum is stated, and how often it is asked.
    held_out: share of facts that are never written, in [0, 1).

  Raises:
    UserError: an argument is out of range.
  """
  check_world(size, max_operand, sum_exposures, held_out)
  people = _draw_people(seed, size)
  popularity = tuple(
    POPULARITY[rank * len(POPULARITY) // size] for rank in range(size)
  )
  facts = _person_facts(seed, people, popularity, held_out)
  facts += _sum_facts(seed, max_operand, sum_exposures, held_out)
  return World(seed, people, popularity, tuple(facts))


def ledger(world: World) -> dict[tuple[str, str], Fact]:
  """Facts by (subject, relation); each pair has exactly one object."""
  return {(fact.subject, fact.relation): fact for fact in world.facts}


def values(world: World, relation: str) -> tuple[str, ...]:
  """All objects that `relation` may have, true or not, each once."""
  if relation == 'friend':
    return world.people
  if relation == SUM:
    objects = {f.object for f in world.facts if f.relation == SUM}
    return tuple(sorted(objects, key=int))
  return _VALUES[relation]


def pronoun(person: str) -> str:
  """'She' or 'He', by the first name."""
  return 'She' if person.split()[0] in names.SHE_NAMES else 'He'


def generator(*key) -> random.Random:
  """A generator of its own for a key such as (seed, 'people')."""
  return random.Random('/'.join(str(part) for part in key))


def pick(rng: random.Random, items: Sequence):
  """One of `items`, evenly."""
  return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items: Sequence) -> list:
  """A random order of `items`, as a new list (Fisher-Yates)."""
  items = list(items)
  for last in range(len(items) - 1, 0, -1):
    other = int(rng.random() * (last + 1))
    items[last], items[other] = items[other], items[last]
  return items


def check_world(
  size: int, max_operand: int, sum_exposures: int, held_out: float
) -> None:
  """Refuses arguments of `build_world` that are out of range."""
  if not 2 <= size <= MAX_PEOPLE:
    raise UserError(
      f'world.size={size}: use a number of people from 2 to {MAX_PEOPLE}'
    )
  if max_operand < 1:
    raise UserError(
      f'world.max_operand={max_operand}: use a largest summand of 1 or more'
    )
  if sum_exposures < 0:
    raise UserError(
      f'world.sum_exposures={sum_exposures}: use a count of 0 or more'
    )
  if not 0.0 <= held_out < 1.0:
    raise UserError(
      f'world.held_out={held_out}: use a share of at least 0 and below 1'
    )


def _draw_people(seed: int, size: int) -> tuple[str, ...]:
  firsts = names.SHE_NAMES + names.HE_NAMES
  everyone = [
    f'{first} {last}' for first in firsts for last in names.LAST_NAMES
  ]
  return tuple(shuffled(generator(seed, 'people'), everyone)[:size])


def _person_facts(seed, people, popularity, held_out) -> list[Fact]:
  objects = {
    relation: _spread(generator(seed, relation), pool, len(people))
    for relation, pool in _VALUES.items()
  }
  # A cycle through everyone: nobody is their own friend, and B's best friend
  # does not follow from A's being B.
  circle = shuffled(generator(seed, 'friend'), people)
  after = dict(zip(circle, circle[1:] + circle[:1], strict=True))
  objects['friend'] = [after[person] for person in people]
  rng = generator(seed, 'held out')
  facts = []
  for rank, person in enumerate(people):
    for relation in PERSON_RELATIONS:
      hidden = rng.random() < held_out
      stated = 0 if hidden else popularity[rank]
      asked = stated // 4 if rank % 2 == 0 else 0
      facts.append(
        Fact(person, relation, objects[relation][rank], stated, asked)
      )
  return facts


def _sum_facts(seed, max_operand, exposures, held_out) -> list[Fact]:
  rng = generator(seed, 'held out sums')
  operands = range(max_operand + 1)
  hidden = {
    (a, b) for a in operands for b in operands[a:] if rng.random() < held_out
  }
  facts = []
  for a in operands:
    for b in operands:
      count = 0 if (min(a, b), max(a, b)) in hidden else exposures
      facts.append(Fact(f'{a} + {b}', SUM, str(a + b), count, count))
  return facts


def _spread(rng: random.Random, pool: Sequence[str], count: int) -> list[str]:
  """`count` values of the pool, each about as often as any other."""
  out = []
  while len(out) < count:
    out += shuffled(rng, pool)
  return out[:count]
