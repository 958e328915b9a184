"""An opened checkpoint: all that is known before its weights are read."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from llm.models.config import ModelConfig
from llm.text.tokenizer import Tokenizer, find_tokenizer, load_tokenizer

# (bytes done, bytes in all, name of what was just read or written)
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint without its weights, whatever kind of file it is.

  Attributes:
    path: where it is.
    config: the shape of the model.
    tokenizer: None where none was given and none lies with the model.
    generation: the sampling settings that the checkpoint recommends, under the
      names of `generation_config.json`; {} where it has none.
    load: `load(dtype, shardings=None, progress=None) -> params` reads the
      weights: every parameter in `dtype`, layers unrolled. `shardings` is a
      tree of where each parameter shall lie, None for the default device;
      `progress` is called after each tensor. Raises UserError where files are
      missing, broken, or do not fit `config`.
  """

  path: str
  config: ModelConfig
  tokenizer: Tokenizer | None
  generation: Mapping[str, Any]
  load: Callable[..., Any]


def read_tokenizer(
  path: str, where: str | None, vocab_size: int
) -> Tokenizer | None:
  """The tokenizer at `where`, else the one in a file beside the model.

  Args:
    path: of the model.
    where: of the tokenizer, if it is elsewhere.
    vocab_size: of the model.

  Returns:
    None where `where` is None and no tokenizer file is found.
  """
  found = where or find_tokenizer(path)
  return load_tokenizer(found, vocab_size) if found else None
