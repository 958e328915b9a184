r"""Reward models: a transformer that scores completions, or their steps.

  python launch.py --config=configs/reward.py --workdir=runs/reward \
    --config.model.path=PATH --config.data.path=PAIRS.jsonl \
    --config.data.eval_fraction=0.1 --config.export=REWARD_MODEL

Rows as for `configs/preference.py`; they may have a `margin`. With
`loss.name=process` rows are `{"prompt", "completions": [step, …], "labels":
[true, …]}`, and each step is scored at its end. Expected: the loss falls from
ln 2, and `eval_reward_accuracy` rises from chance, with its interval in
`result.json`. REWARD_MODEL is a Hugging Face folder, a
`…ForSequenceClassification` with one label. All fields: docs/rewards.md.
"""

from ml_collections import config_dict

from llm.config_args import parse_arg
from llm.tasks.training_fields import training_fields


def get_config(arg=None):
  """Every field of a reward model's training; there are no bundles."""
  parse_arg(arg)
  config = training_fields('reward')
  config.data.packing = False  # a row is a pair; True: several pairs in a row
  # process only: what ends a step, where its score is read; None: a line end.
  config.data.step_separator = config_dict.placeholder(str)
  config.train.steps = 200
  config.train.batch_size = 16  # rows: pairs, unless they are packed
  config.train.eval_every = 50
  config.optim.lr = 1e-5
  config.optim.warmup_steps = 10
  config.optim.schedule = 'linear'
  config.loss.name = 'bradley_terry'  # of pairs; or 'process', of steps
  # bradley_terry only: pulls the rewards towards a mean of 0; None: off.
  config.loss.center_coef = config_dict.placeholder(float)
  return config
