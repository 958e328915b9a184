"""The quickstart's data: a world written out, and a tokenizer for it."""

import json
import pathlib

from llm.data.worlds import corpus as corpus_lib
from llm.data.worlds import world as world_lib
from llm.text import training as tokenizer_training
from llm.text.tokenizer import load_tokenizer

# Files of the corpus, for pretraining, fine-tuning, preferences and rewards.
TEXTS, DIALOGUES = 'texts.jsonl', 'dialogues.jsonl'
PAIRS, SUMS = 'pairs.jsonl', 'sums.jsonl'
# "<s> Question: … …</s>": the answer follows the question at once, as in the
# quizzes of the texts. With a word between them ("Answer:") a model this small
# would have to look facts up at a place where it never did in pretraining, and
# fine-tuning hardly carries over to facts that it only read (docs/quickstart.md
# has the numbers).
CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{ ' Question: ' + message.content }}
  {%- elif message.role == 'assistant' -%}
    {{ ' ' + message.content + eos_token }}
  {%- else -%}
    {{ raise_exception('roles are user and assistant') }}
  {%- endif -%}
{%- endfor -%}
"""


def write_corpus(
  folder: pathlib.Path, world: world_lib.World, quizzes: bool
) -> dict:
  """Writes the ledger and the training files; returns how much there is.

  Args:
    folder: for the files.
    world: the ledger.
    quizzes: add the questions and answers of the dialogues to the texts too, as
      prose.
  """
  rows = [document.to_json() for document in corpus_lib.write_corpus(world)]
  dialogues = [row for row in rows if 'messages' in row]
  texts = [row for row in rows if 'text' in row]
  if quizzes:
    texts += [{'text': _quiz(row['messages'])} for row in dialogues]
  pairs = corpus_lib.write_pairs(world)
  asked = [
    question
    for question in corpus_lib.write_exam(world)
    if question.fact.relation == world_lib.SUM and question.fact.asked
  ]
  write_jsonl(folder / TEXTS, texts)
  write_jsonl(folder / DIALOGUES, dialogues)
  write_jsonl(folder / PAIRS, [pair.to_json() for pair in pairs])
  write_jsonl(
    folder / SUMS,
    [
      {'prompt': question.messages, 'answer': question.answer}
      for question in asked
    ],
  )
  write_jsonl(folder / 'ledger.jsonl', map(vars, world.facts))
  sums = sum(fact.relation == world_lib.SUM for fact in world.facts)
  return {
    'texts': len(texts),
    'dialogues': len(dialogues),
    'pairs': len(pairs),
    'people': len(world.people),
    'sums': sums,
  }


def train_tokenizer(
  folder: pathlib.Path, corpus: pathlib.Path, vocab_size: int
) -> dict:
  """Trains a tokenizer on the corpus.

  Returns:
    `vocab_size`, and `characters`, how many of them a token has on average.
  """
  texts = [row['text'] for row in read_jsonl(corpus / TEXTS)]
  dialogues = read_jsonl(corpus / DIALOGUES)
  texts += [_chat(row['messages']) for row in dialogues]
  model = tokenizer_training.train_sentencepiece(texts, vocab_size)
  (folder / 'tokenizer.model').write_bytes(model)
  config = {
    'tokenizer_class': 'LlamaTokenizer',
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'add_bos_token': True,
    'add_eos_token': False,
    'legacy': False,
    'chat_template': CHAT_TEMPLATE,
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2))
  tokenizer = load_tokenizer(folder)
  tokens = sum(len(tokenizer.encode(text, bos=False)) for text in texts)
  return {
    'vocab_size': tokenizer.vocab_size,
    'characters': sum(map(len, texts)) / tokens,
  }


def _quiz(messages: list[dict]) -> str:
  """The same questions and answers as running text: "How old is …? 45. …"."""
  stops = {'user': '', 'assistant': '.'}
  return ' '.join(m['content'] + stops[m['role']] for m in messages)


def _chat(messages: list[dict]) -> str:
  """A dialogue in the words of the chat template."""
  names = {'user': 'Question: ', 'assistant': ''}
  return ' '.join(names[m['role']] + m['content'] for m in messages)


def read_jsonl(path: pathlib.Path) -> list[dict]:
  """The rows of a file."""
  with path.open(encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def write_jsonl(path: pathlib.Path, rows) -> None:
  """Writes rows to a file, a line each."""
  with path.open('w', encoding='utf-8') as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + '\n')
