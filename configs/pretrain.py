r"""Pretraining on plain text, from scratch or from a checkpoint.

  python launch.py --config=configs/pretrain.py --workdir=runs/pretrain \
    --config.data.path=TEXT.txt --config.tokenizer.path=bytes
  python launch.py --config=configs/pretrain.py:shakespeare \
    --workdir=runs/shakespeare --config.data.path=tinyshakespeare/input.txt

Data are text files or rows with a `text`; the loss is on every token. The
bundle `shakespeare` is nanoGPT's setting for a laptop (4 layers, width 128,
context 64, batches of 12, 2,000 steps), with the last tenth of the file held
out. Expected: a held-out loss of about 1.7 nats per byte, in less than five
minutes on two cores. All fields: docs/training.md.
"""

from llm.config_args import parse_arg
from llm.tasks.training_fields import training_fields


def get_config(arg=None):
  """Every field of a pretraining run; `:shakespeare` as above."""
  arg = parse_arg(arg, shakespeare=False)
  config = training_fields('pretrain')
  config.data.overlong = 'split'
  config.train.eval_every = 250
  config.optim.lr = 1e-3
  config.optim.warmup_steps = 100
  config.optim.min_lr_ratio = 0.1
  config.optim.weight_decay = 0.1
  config.optim.b2 = 0.99
  config.loss.name = 'cross_entropy'
  config.loss.neftune_alpha = 0.0
  if arg.shakespeare:
    _shakespeare(config)
  return config


def _shakespeare(config):
  config.tokenizer.path = 'bytes'
  config.model.embed_dim = 128
  config.model.hidden_dim = 352
  config.model.num_layers = 4
  config.model.num_heads = 4
  config.model.num_kv_heads = 4
  config.model.head_dim = 32
  config.model.max_length = 256
  config.data.max_length = 65  # 64 predictions; windows share a token
  config.data.eval_fraction = 0.1
  config.train.steps = 2000
  config.train.batch_size = 12
  config.optim.lr = 3e-3
