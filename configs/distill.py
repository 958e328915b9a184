r"""Distillation: a student learns the next tokens of a teacher (GKD).

  python launch.py --config=configs/distill.py --workdir=runs/distill \
    --config.model.path=STUDENT --config.teacher.path=TEACHER \
    --config.data.path=ROWS.jsonl --config.export=OUT

Rows as for `configs/sft.py`. With probability `rollout.lmbda` a batch is on
policy: the student's own completions of the rows' prompts. Otherwise it is the
rows as they are. On both, the loss is the divergence of the two models' next
tokens (Agarwal et al., 2306.13649). With `rollout.lmbda=1`, rows of a prompt
alone will do. Expected: the loss falls towards 0 and `agreement` rises. All
fields: docs/distillation.md.
"""

from ml_collections import config_dict

from llm.align.checks import MAX_NEW_TOKENS, TEMPERATURE
from llm.config_args import parse_arg
from llm.tasks.training_fields import training_fields


def get_config(arg=None):
  """Every field of a distillation; there are no bundles to choose."""
  parse_arg(arg)
  config = training_fields('distill')
  config.data.packing = False
  config.train.steps = 200
  config.train.batch_size = 16
  config.train.eval_every = 50
  config.optim.lr = 2e-5
  config.optim.warmup_steps = 10

  teacher = config.teacher = config_dict.ConfigDict()
  # A model folder or llama2.c .bin with the student's vocabulary.
  teacher.path = config_dict.placeholder(str)

  rollout = config.rollout = config_dict.ConfigDict()
  rollout.lmbda = 0.5  # share of the batches that are on policy
  rollout.seq_kd = False  # True: the teacher samples the other batches
  rollout.max_new_tokens = MAX_NEW_TOKENS
  rollout.temperature = TEMPERATURE  # of the sampler

  loss = config.loss
  loss.beta = 0.5  # 0: forward KL, 1: reverse KL, between: generalised JSD
  loss.temperature = 1.0  # divides the logits of both models
  return config
