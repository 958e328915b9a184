r"""Fine-tuning of low-rank adapters on a frozen model (LoRA, DoRA).

  python launch.py --config=configs/lora.py --workdir=runs/lora \
    --config.model.path=PATH --config.data.path=DATA.jsonl \
    --config.lora.export=ADAPTERS --config.export=MERGED

Rows and expected result as for `configs/sft.py`. ADAPTERS is a folder in PEFT's
format, MERGED the model with the adapters added to its weights. The learning
rate is about ten times that of full fine-tuning. All fields: docs/training.md.
"""

from llm.config_args import parse_arg
from llm.tasks.training_fields import training_fields


def get_config(arg=None):
  """Every field of a LoRA run; there are no bundles to choose."""
  parse_arg(arg)
  config = training_fields('sft')
  config.train.steps = 200
  config.train.batch_size = 16
  config.train.eval_every = 50
  config.optim.lr = 2e-4
  config.optim.warmup_steps = 10
  config.lora.rank = 16
  config.lora.alpha = 32.0
  config.loss.name = 'cross_entropy'
  config.loss.neftune_alpha = 0.0  # noise on the embeddings (2310.05914); 5
  return config
