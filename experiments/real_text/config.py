"""Training on real text and measuring what was learned, one part a run.

LLM_DATA=DATA python launch.py --config=experiments/real_text/config.py \
    --config.part=bytes --workdir=runs/real_text

`part` is one of

  bytes         pretraining on the bytes of Shakespeare, in the setting of
                configs/pretrain.py:shakespeare
  instructions  pretraining on stories, then fine-tuning on instructions

LLM_DATA is a folder with text/tinyshakespeare/input.txt,
text/tinystories/tinystories_sample.txt and
sft/rasbt_instruction/instruction-data.json. Expected: `result.json` with
held-out losses, and two to five minutes on two cores. `:smoke` trains for some
steps only, to see that everything works. The whole experiment:
`LLM_DATA=DATA python launch.py --sweep=experiments/real_text/sweep.py`.
"""

import ml_collections

from experiments.real_text import measure
from llm.config_args import parse_arg


def get_config(arg=None):
  """Fields of one run; `:smoke` makes it short."""
  arg = parse_arg(arg, smoke=False)
  config = ml_collections.ConfigDict()
  config.task = measure.run
  config.part = 'bytes'
  config.seed = 0  # of the weights and of the order

  own = config.bytes = ml_collections.ConfigDict()
  own.steps = 20 if arg.smoke else 2000
  own.muon = False  # True: Muon in place of AdamW
  own.shuffled = False  # True: the bytes in random order (control)

  own = config.instructions = ml_collections.ConfigDict()
  own.vocab_size = 1024  # of the tokenizer, trained on the stories
  own.pretrain_steps = 20 if arg.smoke else 1000
  own.epochs = 1 if arg.smoke else 3
  own.max_new_tokens = 16 if arg.smoke else 128  # of a completion
  return config
