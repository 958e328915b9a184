"""The names and options of losses are those of the functions."""

import inspect

import pytest

from llm.losses import options, preference


@pytest.mark.parametrize('name', options.PREFERENCE)
def test_options_are_the_keywords_of_the_loss(name):
  loss = getattr(preference, f'{name}_loss')
  parameters = inspect.signature(loss).parameters
  keywords = [p for p in parameters.values() if p.kind == p.KEYWORD_ONLY]
  # Arrays that may be left out stand among the keywords of orpo.
  keywords = {p.name for p in keywords} - {'prompt', 'prompt_tokens'}
  assert keywords == set(options.PREFERENCE[name])
  reads_none = 'ref_chosen' not in parameters
  assert reads_none == (name in options.REFERENCE_FREE)


def test_options_of_kto_are_keywords_of_its_loss():
  keywords = inspect.signature(preference.kto_loss).parameters
  assert set(options.KTO) <= set(keywords)
