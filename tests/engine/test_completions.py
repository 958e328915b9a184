"""The sizes of a run serve each of its batches."""

import ml_collections
import pytest

from llm.decode.generate import slots_needed
from llm.decode.sampling_params import SamplingParams
from llm.engine.completions import plan_decoding
from llm.engine.requests import Request, Sample


def sample(prompt: int, new: int) -> Sample:
  sampling = SamplingParams(max_new_tokens=new)
  request = Request(
    index=0,
    prompt=None,
    tokens=(0,) * prompt,
    sampling=sampling,
    continues=False,
  )
  return Sample(request, 0, sampling)


@pytest.mark.parametrize('chunk', [None, 60, 128])
@pytest.mark.parametrize('new', [1, 4, 128])
def test_capacity_serves_every_length(chunk, new):
  config = ml_collections.ConfigDict(
    {'batch_size': 1, 'chunk_steps': 16, 'prefill_chunk': chunk}
  )
  for length in [*range(1, 300), 513, 520, 624, 1025, 1392, 2049, 2928]:
    capacity = plan_decoding(config, [sample(length, new)]).capacity
    assert capacity >= slots_needed(length, length + new, 16, chunk)
    # A run's other batches are shorter in prompt, in answer, or in both.
    both = plan_decoding(config, [sample(length, new), sample(3, 400)]).capacity
    assert both >= slots_needed(length, length + new, 16, chunk)
    assert both >= slots_needed(3, 403, 16, chunk)
