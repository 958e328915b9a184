"""llm-jax: what happens to a language model after its architecture is chosen.

Axis letters, used in every docstring, comment and einsum of the project:
  B  batch (rows)            T  query length (new tokens)
  S  cache length (slots)    L  layers
  N  query heads             K  key/value heads       G = N / K
  H  head dimension          D  embedding width       F  MLP hidden width
  E  experts                 V  vocabulary
"""

__all__ = ['generate', 'load', 'score']  # from llm.api, loaded on first use


def __getattr__(name):
  if name in __all__:
    from llm import api

    return getattr(api, name)
  raise AttributeError(f"module 'llm' has no attribute {name!r}")
