"""The base of adapters, where it is not the model as its folder has it.

Adapters may bring parameters of their base along (resized tables, say), and
those that treat the two uses of a tied table differently make two tables of it
(see `peft_folder`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from llm.checkpoints.hf.peft import read_base
from llm.checkpoints.hf.peft_folder import PeftFolder
from llm.checkpoints.opened import Progress, Source
from llm.models.lora_places import EMBED, HEAD, TABLES, Path
from llm.models.lora_tree import insert


def load_base(
  source: Source,
  folder: PeftFolder,
  dtype: Any,
  shardings: Any = None,
  progress: Progress | None = None,
) -> Any:
  """`source.load` for the model `folder.config`.

  Args:
    source: the model as it is.
    folder: of the adapters.
    dtype: as for `Source.load`.
    shardings: as for `Source.load`, of the model with its adapters.
    progress: as for `Source.load`.

  Raises:
    UserError: as `Source.load`.
  """
  inner = shardings
  if folder.config.vocab_size != source.config.vocab_size:
    inner = _whole_tables(shardings)
  params = source.load(dtype, inner, progress)
  for path, leaf in read_base(folder).items():
    insert(params, path, _place(leaf.astype(dtype), shardings, path))
  if source.config.tie_embeddings and not folder.config.tie_embeddings:
    table = jnp.copy(params[EMBED[0]][TABLES[EMBED]])
    head = (*HEAD, TABLES[HEAD])
    if head not in folder.base:
      insert(params, head, _place(table, shardings, head))
  return params


def _whole_tables(shardings: Any) -> Any:
  """Tables of another size may not divide: each device reads all of them."""
  if shardings is None or isinstance(shardings, Sharding):
    return shardings
  out = dict(shardings)
  for path, leaf in TABLES.items():
    if path[0] in out:
      old = out[path[0]][leaf]
      out[path[0]] = {leaf: NamedSharding(old.mesh, PartitionSpec())}
  return out


def _place(array: jax.Array, shardings: Any, path: Path) -> jax.Array:
  if shardings is None:
    return array
  if not isinstance(shardings, Sharding):
    shardings = functools.reduce(lambda node, key: node[key], path, shardings)
  return jax.device_put(array, shardings)
