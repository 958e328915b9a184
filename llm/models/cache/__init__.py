"""The key/value cache: plain pytrees, and pure functions that extend them.

`protocol` says what a forward pass asks of a cache. Each kind is one file:

  none    no cache: the queries see the keys of their own call
  rest    `KVCache`, the form that is kept between calls
  open    `OpenCache`, the same during a chunk of decode steps
  shared  `SharedCache`, prompts that several rows continue and none changes

A `KVCache` holds one layer each, of any kind:

  dense   one slot per token
  ring    a sliding window, one slot per token that is still in sight

and a layer holds its keys and values in a format: floats in `kv`, others where
they are defined. A new kind is a new file; `init_cache` takes a function that
makes the layers.
"""

from llm.models.cache.dense import DenseLayer
from llm.models.cache.kv import FloatKV
from llm.models.cache.none import NoCache
from llm.models.cache.open import OpenCache, close_cache, open_cache
from llm.models.cache.protocol import Cache, CallContext, OwnMask, Segment
from llm.models.cache.rest import KVCache, cache_bytes, init_cache, make_layer
from llm.models.cache.ring import RingLayer
from llm.models.cache.shared import SharedCache

__all__ = [
  'Cache',
  'CallContext',
  'DenseLayer',
  'FloatKV',
  'KVCache',
  'NoCache',
  'OpenCache',
  'OwnMask',
  'RingLayer',
  'Segment',
  'SharedCache',
  'cache_bytes',
  'close_cache',
  'init_cache',
  'make_layer',
  'open_cache',
]
