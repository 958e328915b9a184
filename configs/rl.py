r"""Reinforcement learning from rewards: PPO, RLOO, GRPO and its variants.

  python launch.py --config=configs/rl.py --workdir=runs/rl \
    --config.model.path=PATH --config.data.path=ROWS.jsonl --config.export=OUT

Rows are `{"prompt", "answer"}`. By default a completion's reward is 1 where it
equals `answer` once stripped. `loss.name` is ppo, rloo, reinforce, grpo,
dr_grpo, dapo or gspo. Expected: `reward_mean` rises; `kl`, `entropy`, `length`
and `groups_with_signal` show what that costs. All fields: docs/rl.md; rewards:
docs/rewards.md.
"""

from ml_collections import config_dict

from llm.config_args import parse_arg
from llm.tasks.training_fields import training_fields


def get_config(arg=None):
  """Every field of a reinforcement learning run; there are no bundles."""
  parse_arg(arg)
  optional = config_dict.placeholder
  config = training_fields('rl')
  config.data.max_length = 256  # tokens of a prompt
  config.data.packing = False
  config.data.overlong = 'drop'  # prompts above max_length are left out
  config.train.steps = 200
  config.train.batch_size = 16  # prompts of a rollout
  config.train.eval_every = 50
  config.train.best = ''
  config.optim.lr = 1e-6
  config.optim.schedule = 'constant'

  rollout = config.rollout = config_dict.ConfigDict()
  rollout.group_size = 8  # completions per prompt
  rollout.max_new_tokens = 128
  rollout.temperature = 1.0
  rollout.minibatches = 1  # parts of a rollout, a step each
  rollout.epochs = 1  # times that a rollout is trained on
  # dapo: further rounds at most, until all groups have signal; None: 4.
  rollout.max_resamples = optional(int)
  rollout.overlong_margin = 0  # tokens before the limit where a penalty begins
  # (name, weight) or (name, weight, options): see llm/rewards/functions.py, or
  # 'module:function', or ('model', 1.0, {'path': REWARD_MODEL}).
  config.rewards = (('exact_answer', 1.0),)

  loss = config.loss
  loss.name = 'grpo'
  # None: the algorithm's own default (llm/rl/algorithms.py). A field that
  # an algorithm does not read is refused.
  loss.kl_coef = optional(float)
  loss.kl_estimator = optional(str)  # k1, k2, k3
  loss.kl_target = optional(float)  # ppo, rloo: nats per answer; None: fixed
  loss.kl_horizon = optional(float)  # in completions; None: 10000
  loss.clip_low = optional(float)
  loss.clip_high = optional(float)
  loss.dual_clip = optional(float)  # ppo, grpo and its variants: 3, say
  loss.kl_corrected = optional(bool)  # grpo, its variants: KL times ratio
  loss.reduction = optional(str)  # token, sequence, constant, group
  loss.entropy_coef = optional(float)
  loss.value_coef = optional(float)  # ppo
  loss.value_clip = optional(float)  # ppo
  loss.gamma = optional(float)  # ppo
  loss.lam = optional(float)  # ppo
  return config
