"""What a `config.json` leaves out is what `transformers` fills in."""

import pytest
import transformers

from llm.checkpoints.hf.config import from_hf, passed_over
from llm.checkpoints.hf.families import FAMILIES, REQUIRED


@pytest.mark.parametrize('model_type', FAMILIES)
def test_defaults_of_the_classes(model_type):
  whole = transformers.CONFIG_MAPPING[model_type]().to_dict()
  bare = {key: whole[key] for key in REQUIRED} | {'model_type': model_type}
  assert from_hf(bare) == from_hf(whole)
  assert passed_over(whole) is None
