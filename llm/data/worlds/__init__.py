"""Generated worlds with a known ground truth, written out as training text.

names.py      pools of names and values
world.py      build_world(seed, size): the ledger of facts
sentences.py  one fact as a sentence or as a question, in several wordings
corpus.py     a world as documents, exam questions and the marking of answers
"""
