"""Rows of Parquet files."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from llm.errors import UserError
from llm.text.json_rows import Bad

_AT_ONCE = 1024


def read_rows(raw: BinaryIO, name: str) -> Iterator[Any]:
  """Yields the rows of an open file, `Bad` for one that is not UTF-8.

  In a Parquet file the objects of a column all have the same keys: those that
  one of them lacks are null there. So nulls inside of columns are left out.

  Args:
    raw: the file.
    name: its field and path, for messages.

  Raises:
    UserError: pyarrow is missing or cannot read the file, or two columns have
      one name.
  """
  # Imported here since most runs have no Parquet file.
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise UserError(
      f'{name} needs pyarrow, which is not installed: pip install '
      '"llm-jax[train]"'
    ) from None

  try:
    file = parquet.ParquetFile(raw)
    columns = file.schema_arrow.names
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
      raise UserError(
        f'{name} has two columns {twice[0]!r}: rename or remove one of them'
      )
    for batch in file.iter_batches(batch_size=_AT_ONCE):
      for value in _values(batch):
        yield value if isinstance(value, Bad) else _without_padding(value)
  except (pyarrow.ArrowException, OSError) as error:
    raise UserError(
      f'{name} is not a Parquet file that pyarrow reads ({error})'
    ) from None


def _values(batch) -> list[Any]:
  try:
    return batch.to_pylist()
  except UnicodeDecodeError:
    return [_value(batch.slice(row, 1)) for row in range(batch.num_rows)]


def _value(row) -> Any:
  """The value of a batch of one row."""
  found = {}
  for name, column in zip(row.schema.names, row.columns):
    try:
      (found[name],) = column.to_pylist()
    except UnicodeDecodeError as error:
      return Bad(
        f'{name} is not UTF-8 at byte {error.start}; write it as UTF-8'
      )
  return found


def _without_padding(row: dict[str, Any]) -> dict[str, Any]:
  return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [_without_nulls(item) for item in value]
  return value
