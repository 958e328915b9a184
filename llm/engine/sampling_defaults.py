"""The sampling settings that a checkpoint recommends.

`generation_config.json` has them under the names of transformers' generation.
"""

from collections.abc import Mapping
from typing import Any

from llm.decode.sampling_params import SamplingParams
from llm.errors import UserError

DEFAULTS = ('neutral', 'model')
# Theirs -> ours.
_NAMES = {
  'temperature': 'temperature',
  'top_k': 'top_k',
  'top_p': 'top_p',
  'min_p': 'min_p',
  'typical_p': 'typical_p',
  'epsilon_cutoff': 'epsilon',
  'eta_cutoff': 'eta',
  'repetition_penalty': 'repetition_penalty',
  'no_repeat_ngram_size': 'no_repeat_ngram',
}
# They change the logits, so that greedy decoding takes them, too.
_PENALTIES = ('repetition_penalty', 'no_repeat_ngram')
# What says nothing about how a token is drawn.
_OTHERS = frozenset(
  """
  bos_token_id eos_token_id pad_token_id decoder_start_token_id do_sample
  max_length max_new_tokens transformers_version cache_implementation use_cache
  output_attentions output_hidden_states output_logits output_scores
  return_dict_in_generate chat_format assistant_token_id user_token_id
  trust_remote_code
  """.split()
)
# Values of other keys that do nothing.
_OFF = (None, False, 0, 0.0, '', [], {})
_OFF_BY_KEY = {
  'num_beams': (1,),
  'num_beam_groups': (1,),
  'num_return_sequences': (1,),
  'length_penalty': (1.0,),
  'encoder_repetition_penalty': (1.0,),
  'guidance_scale': (1.0,),
  'renormalize_logits': (True,),
  'remove_invalid_values': (True,),
}


def check_defaults(value: str | None) -> None:
  """Refuses values of `sampling.defaults`.

  Raises:
    UserError: it is not one of DEFAULTS, nor None.
  """
  if value is not None and value not in DEFAULTS:
    raise UserError(
      f'sampling.defaults={value!r}: use one of {", ".join(DEFAULTS)}'
    )


def with_defaults(
  sampling: dict[str, Any], generation: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
  """The settings of a run, and the model's own where the run says nothing.

  `do_sample: false` means greedy decoding.

  Args:
    sampling: the fields that are set, see `requests.run_sampling`.
    generation: what `generation_config.json` says, see `Source.generation`.

  Returns:
    the settings, and a line that says what was taken and what could not be.

  Raises:
    UserError: the file has a value that no setting may have.
  """
  found = {
    ours: generation[theirs]
    for theirs, ours in _NAMES.items()
    if generation.get(theirs) is not None
  }
  if generation.get('do_sample') is False:
    kept = {k: v for k, v in found.items() if k in _PENALTIES}
    found = {'temperature': 0.0, **kept}
  taken = {k: v for k, v in found.items() if k not in sampling}
  try:
    SamplingParams.from_dict(taken)
  except UserError as error:
    raise UserError(
      f'generation_config.json: {error}; or leave the file aside with '
      'sampling.defaults=neutral'
    ) from None
  left = [
    f'{key}={value!r}'
    for key, value in generation.items()
    if key not in _NAMES and key not in _OTHERS and not key.startswith('_')
    if value not in _OFF and value not in _OFF_BY_KEY.get(key, ())
  ]
  said = ' '.join(f'{k}={v}' for k, v in taken.items()) or 'nothing'
  note = f'sampling: {said} from generation_config.json'
  if left:
    note += f'; not done: {", ".join(left)}'
  return {**taken, **sampling}, note
