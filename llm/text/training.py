"""Training a SentencePiece tokenizer."""

from collections.abc import Iterable
import io
import json
import os
import pathlib
import re

from llm.errors import UserError


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
  """Trains a BPE vocabulary and returns the contents of a `.model` file.

  As in Llama 2: the text is not normalised, digits are tokens of their own,
  what is not in the vocabulary falls back to bytes, and ids 0, 1, 2 are
  `<unk>`, `<s>`, `</s>`.

  Args:
    texts: lines of text.
    vocab_size: 3 special tokens, 256 bytes, every character of the texts, and
      as many merges as remain.

  Raises:
    UserError: the texts have too many characters for `vocab_size`, or too few
      pairs to fill it.
  """
  import sentencepiece

  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type='bpe',
      vocab_size=vocab_size,
      byte_fallback=True,
      character_coverage=1.0,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      split_digits=True,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    # "... required_chars. 100 vs 273." or "... set it to a value <= 303."
    bound = re.search(r'\d+ vs (\d+)|<= (\d+)', str(error))
    if bound is None:
      raise
    least, most = bound.groups()
    remedy = f'at least {least}' if least else f'at most {most}'
    raise UserError(
      f'tokenizer.vocab_size={vocab_size}: these texts need {remedy}'
    ) from None
  return model.getvalue()


def save_sentencepiece(
  folder: str | os.PathLike, model: bytes, chat_template: str | None = None
) -> None:
  """Writes a tokenizer folder as Llama 2's, for `load_tokenizer`.

  Texts get a BOS and no EOS.

  Args:
    folder: is made where it does not exist.
    model: as `train_sentencepiece` returns it.
    chat_template: jinja2; None: the tokenizer has none.
  """
  config = {
    'tokenizer_class': 'LlamaTokenizer',
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'add_bos_token': True,
    'add_eos_token': False,
    'legacy': False,
  }
  if chat_template is not None:
    config['chat_template'] = chat_template
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'tokenizer.model').write_bytes(model)
  text = json.dumps(config, indent=2) + '\n'
  (folder / 'tokenizer_config.json').write_text(text, encoding='utf-8')
