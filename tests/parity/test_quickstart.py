"""The quickstart's folder as transformers loads it: logits, chat, answers."""

import pathlib

import numpy as np
import pytest
import torch
import transformers

from llm import config_args
import llm.api
from llm.evals import exam
from llm.tasks import quickstart
from llm.text import chat
from llm.text.tokenizer import load_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
QUESTION = {'role': 'user', 'content': 'What is 3 + 1?'}
TURNS = [QUESTION, {'role': 'assistant', 'content': '4'}, QUESTION]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('quickstart')
  config = config_args.load_config(f'{ROOT}/configs/quickstart.py:smoke')
  steps = [
    '--config.pretrain.steps=20',
    '--config.sft.steps=20',
    '--config.preference.steps=5',
    '--config.rl.steps=2',
  ]
  config_args.override_config(config, steps)
  done = {'questions': 0, 'groups': {}, 'texts': [], 'result': {}}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(exam, 'hold_exam', lambda *args, **kwargs: done)
    patch.setattr(exam, 'print_report', lambda stage: None)
    quickstart.run(config, str(workdir))
  return str(workdir / 'model')


def test_chat_and_text_have_the_same_tokens(folder):
  tok = load_tokenizer(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for messages in (TURNS[:1], TURNS):
    ids = theirs.apply_chat_template(
      messages, add_generation_prompt=True, return_dict=False
    )
    assert chat.encode(tok, messages) == ids
  text = 'Question: What is 3 + 1?'
  assert tok.encode(text) == theirs(text).input_ids
  assert tok.encode(text) == chat.encode(tok, TURNS[:1])


def test_log_probabilities_and_greedy_tokens_are_equal(folder):
  model, params, tok = llm.api.load(folder)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  ids = chat.encode(tok, TURNS)
  [ours] = llm.api.score(model, params, tok, [tok.decode(ids[1:])])
  with torch.no_grad():
    again = torch.tensor([tok.encode(tok.decode(ids[1:]))])
    logprobs = torch.log_softmax(theirs(again).logits[0], -1).numpy()
  expected = logprobs[np.arange(again.shape[1] - 1), again[0, 1:]]
  np.testing.assert_allclose(ours, expected, atol=1e-4)
  text = 'Question: What is 3 + 1?'
  [answer] = llm.api.generate(
    model, params, tok, text, temperature=0.0, max_new_tokens=12
  )
  with torch.no_grad():
    generated = theirs.generate(
      torch.tensor([tok.encode(text)]), do_sample=False, max_new_tokens=12
    )
  assert answer.token_ids == generated[0, len(tok.encode(text)) :].tolist()
