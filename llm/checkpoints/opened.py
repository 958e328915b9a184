"""An opened checkpoint: all that is known before its weights are read."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from llm.models.config import ModelConfig
from llm.text.tokenizer import (
  Tokenizer,
  check_path,
  find_tokenizer,
  load_tokenizer,
)

# (bytes done, bytes in all, name of what was just read or written)
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint without its weights, whatever kind of file it is.

  Attributes:
    path: where it is.
    config: the shape of the model.
    tokenizer_path: where the tokenizer is, None where none was given and none
      lies with the model.
    generation: the sampling settings that the checkpoint recommends, under the
      names of `generation_config.json`; {} where it has none.
    load: `load(dtype, shardings=None, progress=None) -> params` reads the
      weights: every parameter in `dtype`, layers unrolled. `shardings` is a
      tree of where each parameter shall lie, None for the default device;
      `progress` is called after each tensor. Raises UserError where files are
      missing, broken, or do not fit `config`.
    replaced: paths of the parameters that are not those at `path`, for adapters
      brought them along.
  """

  path: str
  config: ModelConfig
  tokenizer_path: str | None
  generation: Mapping[str, Any]
  load: Callable[..., Any]
  replaced: tuple[tuple[str, ...], ...] = ()

  @functools.cached_property
  def tokenizer(self) -> Tokenizer | None:
    """The tokenizer, which is read when it is first asked for.

    Raises:
      UserError: its file is broken or does not fit the model.
    """
    if self.tokenizer_path is None:
      return None
    return load_tokenizer(self.tokenizer_path, self.config.vocab_size)


def locate_tokenizer(path: str, where: str | None) -> str | None:
  """`where`, else the tokenizer's file beside the model, else None.

  Args:
    path: of the model.
    where: of the tokenizer, if it is elsewhere.

  Raises:
    UserError: there is no tokenizer at `where`.
  """
  if where is None:
    found = find_tokenizer(path)
    return None if found is None else str(found)
  check_path(where)
  return where
