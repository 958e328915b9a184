"""What a checkpoint recommends fills what the run leaves open."""

import pytest

from llm import config_args
from llm.decode.sampling_params import SamplingParams
from llm.engine.requests import run_sampling
from llm.engine.sampling_defaults import with_defaults
from llm.errors import UserError

QWEN3 = {
  'bos_token_id': 151643,
  'do_sample': True,
  'eos_token_id': [151645, 151643],
  'pad_token_id': 151643,
  'temperature': 0.6,
  'top_k': 20,
  'top_p': 0.95,
  'transformers_version': '4.51.0',
}


def fields(*args):
  config = config_args.load_config('configs/generate.py')
  config_args.override_config(config, [f'--config.sampling.{a}' for a in args])
  return run_sampling(config.sampling)


def test_unset_fields_are_neutral():
  assert SamplingParams.from_dict(fields('max_new_tokens=3')) == SamplingParams(
    max_new_tokens=3
  )


def test_the_model_recommends():
  settings, note = with_defaults(fields(), QWEN3)
  assert {k: settings[k] for k in ('temperature', 'top_k', 'top_p')} == {
    'temperature': 0.6, 'top_k': 20, 'top_p': 0.95
  }  # fmt: skip
  assert note == (
    'sampling: temperature=0.6 top_k=20 top_p=0.95 from generation_config.json'
  )


def test_the_user_wins():
  # Also with the neutral value, which is a choice once it is made.
  settings, note = with_defaults(fields('temperature=1.0', 'top_k=0'), QWEN3)
  assert (settings['temperature'], settings['top_k']) == (1.0, 0)
  assert settings['top_p'] == 0.95
  assert note.startswith('sampling: top_p=0.95 from')


@pytest.mark.parametrize(
  'generation, taken, said',
  [
    ({}, {}, 'sampling: nothing from'),
    ({'do_sample': False, 'temperature': 0.7}, {'temperature': 0.0}, '=0.0'),
    ({'do_sample': False, 'top_p': 0.9, 'repetition_penalty': 1.1},
     {'temperature': 0.0, 'repetition_penalty': 1.1}, 'penalty=1.1 from'),
    ({'temperature': 0.7}, {'temperature': 0.7}, 'temperature=0.7'),
    ({'repetition_penalty': 1.05, 'no_repeat_ngram_size': 3},
     {'repetition_penalty': 1.05, 'no_repeat_ngram': 3}, 'no_repeat_ngram=3'),
    ({'num_beams': 4, 'length_penalty': 1.0, 'penalty_alpha': 0.6,
      'guidance_scale': None}, {}, 'not done: num_beams=4, penalty_alpha=0.6'),
    ({'epsilon_cutoff': 3e-4, 'top_p': None}, {'epsilon': 3e-4}, 'epsilon='),
  ],
)  # fmt: skip
def test_what_files_say(generation, taken, said):
  settings, note = with_defaults({'seed': 1}, generation)
  assert settings == {'seed': 1, **taken} and said in note


def test_a_bad_value():
  with pytest.raises(UserError, match="sampling.defaults='hf': use one of"):
    fields('defaults=hf')


@pytest.mark.parametrize(
  'generation, said',
  [
    ({'temperature': 'hot'}, "sampling.temperature = 'hot'"),
    ({'top_p': 1.5}, 'sampling.top_p = 1.5'),
    ({'top_k': -1}, 'sampling.top_k = -1'),
    ({'repetition_penalty': [1]}, 'sampling.repetition_penalty = [1]'),
  ],
)
def test_a_file_with_a_bad_value(generation, said):
  with pytest.raises(UserError) as error:
    with_defaults({}, generation)
  message = str(error.value)
  assert message.startswith(f'generation_config.json: {said}: must be ')
  assert 'sampling.defaults=neutral' in message
  # What the run sets itself, the file need not have right.
  key = said.split()[0].removeprefix('sampling.')
  assert with_defaults({key: 1}, generation)[0] == {key: 1}
