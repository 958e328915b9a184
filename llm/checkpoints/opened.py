"""An opened checkpoint: all that is known before its weights are read."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

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
    note: what is to be said of its config; None for nothing.
    end_ids: what its files say ends a text, {file: ids}; those that say nothing
      are not in it.
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
  note: str | None = None
  end_ids: Mapping[str, tuple[int, ...]] = dataclasses.field(
    default_factory=dict
  )
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

  @functools.cached_property
  def ends(self) -> 'Ends':
    """What ends a text, with all files of the checkpoint considered.

    Any of the ids ends a completion: first those of `config.eos_ids`, then the
    tokenizer's own and those of other files, where they are special tokens.

    Raises:
      UserError: as `tokenizer`.
    """
    tok, said = self.tokenizer, dict(self.end_ids)
    ids = list(self.config.eos_ids)
    if tok is not None:
      if tok.eos_ids:
        said['the tokenizer'] = tok.eos_ids
      more = (id for of_file in said.values() for id in of_file)
      ids += [id for id in more if id in tok.special_ids]
    ids = tuple(dict.fromkeys(ids))
    if len({frozenset(of_file) for of_file in said.values()}) < 2:
      return Ends(ids, None)
    token = lambda id: f'{id} ({tok.token(id)})' if tok else str(id)
    listed = lambda ids: ' or '.join(map(token, ids)) or 'none'
    files = '; '.join(f'{name}: {listed(of)}' for name, of in said.items())
    return Ends(ids, f'{self.path}: a text ends with {listed(ids)} ({files})')


class Ends(NamedTuple):
  """Ids that end a text; what to say where files do not agree, else None."""

  ids: tuple[int, ...]
  note: str | None


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
