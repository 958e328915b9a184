"""Ladders of array sizes: few sizes, so that few programs are compiled."""


def bucket(length: int, minimum: int = 16, maximum: int | None = None) -> int:
  """The smallest of minimum * 2**k that is at least `length`.

  16 for 1, 16 for 16, 32 for 17. With a `maximum` the ladder ends there, at
  whatever size that is: 20 for 17 where it is 20.
  """
  size = minimum
  while size < length:
    size *= 2
  return size if maximum is None else min(size, maximum)


def fine_bucket(length: int, minimum: int = 64) -> int:
  """The smallest of minimum * 2**k * (1 or 1.5) that is at least `length`.

  A ladder with smaller steps, for sizes whose whole length is paid for: cache
  slots that are allocated or looked at. 64, 96, 128, 192, 256, …
  """
  size = bucket(length, minimum)
  middle = size * 3 // 4
  return middle if size > minimum and middle >= length else size
