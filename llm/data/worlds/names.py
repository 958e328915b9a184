"""Pools of names and values for worlds.

People share first and last names, so a single name does not tell how well known
a person is. Values are drawn evenly from their pool, so that the most frequent
value of a relation is no better than a guess.
"""

SHE_NAMES = (
  'Ada', 'Anna', 'Clara', 'Dora', 'Edith', 'Ella', 'Emma', 'Flora',
  'Grace', 'Hanna', 'Iris', 'Ivy', 'Julia', 'Laura', 'Lucy', 'Mary',
  'Nina', 'Nora', 'Olga', 'Paula', 'Rosa', 'Ruth', 'Sara', 'Vera',
)  # fmt: skip

HE_NAMES = (
  'Adam', 'Alan', 'Ben', 'Carl', 'David', 'Emil', 'Felix', 'Frank',
  'George', 'Henry', 'Hugo', 'Ian', 'Jack', 'John', 'Karl', 'Leo',
  'Mark', 'Max', 'Oscar', 'Paul', 'Peter', 'Simon', 'Tom', 'Victor',
)  # fmt: skip

LAST_NAMES = (
  'Ash', 'Barn', 'Beck', 'Bell', 'Birch', 'Bloom', 'Brook', 'Bush',
  'Clay', 'Cliff', 'Cole', 'Cross', 'Dale', 'Dean', 'Drake', 'Field',
  'Finch', 'Ford', 'Fox', 'Glen', 'Hale', 'Hart', 'Hill', 'Holt',
  'Lake', 'Lane', 'Marsh', 'Moor', 'Nash', 'Park', 'Pike', 'Pine',
  'Pond', 'Reed', 'Ridge', 'Rook', 'Shore', 'Snow', 'Stone', 'Swan',
  'Thorn', 'Vale', 'Wade', 'Ward', 'Webb', 'West', 'Wolf', 'Wood',
)  # fmt: skip

TOWNS = (
  'Alder', 'Amber', 'Barrow', 'Calder', 'Corby', 'Dover', 'Elton', 'Fenby',
  'Garth', 'Hampton', 'Irby', 'Kelso', 'Linton', 'Marlow', 'Norby', 'Orton',
  'Penrith', 'Radley', 'Selby', 'Thirsk', 'Upton', 'Warsop', 'Wexford', 'York',
)  # fmt: skip

JOBS = (
  'baker', 'barber', 'butcher', 'carpenter', 'cook', 'dentist', 'driver',
  'farmer', 'fisher', 'gardener', 'glazier', 'hunter', 'judge', 'lawyer',
  'mason', 'miller', 'nurse', 'painter', 'pilot', 'potter', 'sailor',
  'singer', 'tailor', 'teacher',
)  # fmt: skip

COLOURS = (
  'black', 'blue', 'brown', 'gold', 'green', 'grey', 'orange', 'pink',
  'purple', 'red', 'silver', 'white',
)  # fmt: skip

PETS = (
  'cat', 'dog', 'duck', 'goat', 'goose', 'horse', 'lamb', 'mouse',
  'parrot', 'pony', 'rabbit', 'turtle',
)  # fmt: skip
