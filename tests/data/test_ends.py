"""What training teaches as an end, by hand."""

import numpy as np

from llm.data.ends import taught_ends
from llm.data.examples import Example, from_list

A, B = 98, 99


def examples(*rows):
  return from_list(
    Example(np.array(tokens, np.int32), np.array(weights, np.float32))
    for tokens, weights in rows
  )


def test_special_tokens_at_the_end_of_what_is_learned():
  made = examples(
    ([1, 2, A, 3, 4, A], [0, 1, 1, 0, 1, 0.5]),
    ([B, 5, 6, B], [0, 1, 1, 1]),
    ([7, 8, 9], [0, 1, 1]),  # truncated: ends in an ordinary token
  )
  assert taught_ends(made, {A, B}) == (A, B)
  assert taught_ends(made, {B}) == (B,)
  assert taught_ends(made.part(1, 2), {A, B}) == (B,)
  assert taught_ends(made.part(2, 3), {A, B}) == ()


def test_the_first_token_of_the_next_example_is_no_sequel():
  made = examples(([1, A], [0, 1]), ([B, 2], [1, 1]))
  assert taught_ends(made, {A, B}) == (A,)


def test_a_token_between_thoughts_and_reply_is_no_end():
  row = ([1, 2, A, 3, B], [0, 1, 1, 1, 1])
  made = examples(row, row, ([1, 2, A, 4], [0, 1, 1, 0]))
  assert taught_ends(made, {A, B}) == (B,)
  # Once in ten rows, as a user may write it, it still is.
  made = examples(row, *[([1, 2, A], [0, 1, 1])] * 10)
  assert taught_ends(made, {A, B}) == (A, B)


def test_prompts_alone_teach_no_end():
  assert taught_ends(examples(([1, A], [0, 0])), {A}) == ()
