"""Real data sets through the whole of `llm.data`."""

import json

import numpy as np
import pytest

from llm.data.dataset import load_examples
from llm.data.packing import best_fit
from llm.data.pipeline import make_source
from llm.data.records import read_records
from llm.data.shapes import canonical_row
from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer


@pytest.fixture(scope='module')
def llama2(data_dir):
  return load_tokenizer(data_dir / 'tokenizers/llama2/tokenizer.model')


@pytest.fixture(scope='module')
def gpt2(data_dir):
  return load_tokenizer(data_dir / 'tokenizers/gpt2')


def test_alpaca_rows(data_dir, llama2):
  path = data_dir / 'sft/rasbt_instruction/instruction-data.json'
  rows = json.loads(path.read_text())
  train, held_out = load_examples(
    path, llama2, max_length=512, eval_fraction=0.1
  )
  assert (len(train), len(held_out)) == (990, 110)
  assert train.counts['shapes'] == {'Alpaca': 1100}
  assert train.counts['truncated'] == train.counts['emptied'] == 0
  for example, row in zip([*train, *held_out], rows, strict=True):
    tokens, mask = example.tokens.tolist(), example.loss_mask
    assert tokens[0] == llama2.bos_id and tokens[-1] == llama2.eos_ids[0]
    text = llama2.decode(tokens)
    assert text.endswith('### Response:\n' + row['output'])
    said = llama2.decode([t for t, on in zip(tokens, mask) if on])
    assert said.removeprefix(' ') == row['output'].removeprefix(' ')
  packs = best_fit(train.lengths, 512)
  assert train.lengths.sum() / (512 * len(packs)) > 0.95


def test_prompt_and_response_rows(data_dir, gpt2, tmp_path):
  path = data_dir / 'sft/dolly_hhrlhf/dolly_hhrlhf_train_small.jsonl'
  options = dict(max_length=512, cache_dir=tmp_path)
  first, _ = load_examples(path, gpt2, **options)
  counts = first.counts
  assert counts['rows'] == 1000 == len(first) + counts['emptied']
  assert counts['shapes'] == {'prompt/completion': 1000}
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  kept = iter(first)
  for row in rows:
    seam = len(gpt2.encode(row['prompt']))
    if seam < 500:  # else what is learned may have been cut off
      example = next(kept)
      said = gpt2.decode(example.tokens[example.loss_mask].tolist())
      assert row['response'].startswith(said.lstrip()[:-1])
      if len(example.tokens) < 512:
        assert said.endswith(row['response'])
    else:
      break
  again, _ = load_examples(path, gpt2, **options)
  assert again.digest == first.digest
  feeds = [
    make_source(
      e, batch_size=4, max_length=512, packing=True, shuffle=True, seed=1
    )
    for e in (first, again)
  ]
  next(feeds[0])
  feeds[1].set_state(feeds[0].get_state())
  for _ in range(3):
    (a, stats), (b, _) = next(feeds[0]), next(feeds[1])
    np.testing.assert_array_equal(a['tokens'], b['tokens'])
    assert stats['efficiency'] > 0.9


def test_zstandard_rows(data_dir):
  path = data_dir / 'text/wikinews/wikinews_en.jsonl.zst'
  count = characters = 0
  for record in read_records(path):
    count += 1
    assert record.row == count
    characters += len(canonical_row(record.value, False).text)
  assert (count, characters) == (19374, 35648266)


def test_windows_of_shakespeare(data_dir):
  path = data_dir / 'text/tinyshakespeare/input.txt'
  tok = load_tokenizer('bytes')
  train, held_out = load_examples(
    path, tok, max_length=65, overlong='split', eval_fraction=0.1
  )
  text = path.read_bytes()
  cut = int(len(text) * 0.9)  # as nanoGPT does
  targets = train.tokens[train.loss_mask]
  np.testing.assert_array_equal(targets[:-1], np.frombuffer(text[:cut], 'u1'))
  targets = held_out.tokens[held_out.loss_mask]
  np.testing.assert_array_equal(targets[:-1], np.frombuffer(text[cut:], 'u1'))
  assert train.lengths.max() == 65 and (train.lengths == 65).mean() > 0.999


@pytest.mark.parametrize(
  'name',
  (
    'preference/hh_rlhf_harmless/test.jsonl.gz',
    'preference/rasbt_preference/instruction-data-with-preference.json',
    'math/gsm8k/test.jsonl',
  ),
)
def test_other_shapes_are_read_or_refused_by_row(data_dir, gpt2, name):
  path = data_dir / name
  assert len(list(read_records(path))) > 1000
  if 'rasbt' in name:  # Alpaca rows, with two more keys
    counts = load_examples(path, gpt2, max_length=512)[0].counts
    assert counts['rows'] == 1100
    assert set(*counts['unread'].values()) == {'chosen', 'rejected'}
    return
  if 'gsm8k' in name:
    counts = load_examples(path, gpt2, max_length=512)[0].counts
    assert counts['shapes'] == {'question/answer': 1319}
    assert counts['unread'] == {}
    return
  with pytest.raises(UserError, match=f'{path.name}, row 1: is of no known'):
    load_examples(path, gpt2, max_length=512)
