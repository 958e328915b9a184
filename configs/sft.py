r"""Supervised fine-tuning on conversations or on prompts with completions.

  python launch.py --config=configs/sft.py --workdir=runs/sft \
    --config.model.path=PATH --config.data.path=DATA.jsonl --config.export=OUT

Rows are `{"messages": […]}`, `{"prompt", "completion"}`, Alpaca's
`{"instruction", "input", "output"}` or ShareGPT's `{"conversations"}`; the loss
is on what the assistant says. Expected: a bar with the loss, a line for each
evaluation, then a table, `metrics.jsonl` and `loss.png` in the workdir, and OUT
as a Hugging Face folder. The same command resumes a run that was stopped. All
fields: docs/training.md.
"""

from llm.config_args import parse_arg
from llm.tasks.training_fields import training_fields


def get_config(arg=None):
  """Every field of a fine-tuning run; there are no bundles to choose."""
  parse_arg(arg)
  config = training_fields('sft')
  config.train.steps = 200
  config.train.batch_size = 16
  config.train.eval_every = 50
  config.optim.lr = 2e-5
  config.optim.warmup_steps = 10
  config.loss.name = 'cross_entropy'
  config.loss.neftune_alpha = 0.0  # noise on the embeddings (2310.05914); 5
  return config
