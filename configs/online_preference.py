r"""Online and iterative DPO: pairs of the model's own completions.

  python launch.py --config=configs/online_preference.py --workdir=runs/online \
    --config.model.path=PATH --config.data.path=ROWS.jsonl --config.export=OUT

Rows and `rewards` as for `configs/rl.py`. Each step samples two completions for
each prompt with the current parameters; the one with the higher reward is
chosen, the other one rejected (Guo et al., 2402.04792). `loss.name` is one of
those of `configs/preference.py` except kto. With `rollout.minibatches` above 1
and `rollout.reference_every=1` it is iterative DPO: many pairs at once, several
steps on them, then the policy becomes the reference. Expected: `reward_mean`
rises; `kl`, `length` and `tied` show what that costs. All fields:
docs/preferences.md.
"""

from ml_collections import config_dict

from llm.config_args import parse_arg
from llm.tasks.training_fields import training_fields


def get_config(arg=None):
  """Every field of an online run; there are no bundles to choose."""
  parse_arg(arg)
  optional = config_dict.placeholder
  config = training_fields('online_preference')
  config.data.max_length = 256  # tokens of a prompt
  config.data.packing = False
  config.data.overlong = 'drop'  # prompts above max_length are left out
  config.train.steps = 200
  config.train.batch_size = 16  # prompts of a rollout
  config.train.eval_every = 50
  config.train.best = ''
  config.optim.lr = 5e-7
  config.optim.schedule = 'constant'

  rollout = config.rollout = config_dict.ConfigDict()
  rollout.group_size = 2  # completions per prompt; best and worst make the pair
  rollout.max_new_tokens = 128
  rollout.temperature = 1.0  # of the sampler; the loss reads the model at 1
  rollout.minibatches = 1  # parts of a rollout, a step each
  rollout.epochs = 1  # times that a rollout is trained on
  rollout.overlong_margin = 0  # tokens before the limit where a penalty begins
  # The policy becomes the reference every so many rollouts; 0: never, the
  # reference is the model before training.
  rollout.reference_every = 0
  # (name, weight) or (name, weight, options): see llm/rewards/functions.py, or
  # 'module:function', or ('model', 1.0, {'path': REWARD_MODEL}).
  config.rewards = (('exact_answer', 1.0),)

  loss = config.loss
  loss.name = 'dpo'
  # None: the loss's own default. A field that a loss does not read is refused.
  loss.beta = optional(float)
  loss.label_smoothing = optional(float)  # cdpo, robust_dpo, …
  loss.logprobs = optional(str)  # ipo: 'mean' or 'sum'
  loss.alpha = optional(float)  # rpo, cpo: weight of the NLL
  loss.nll = optional(str)  # rpo: 'token' or 'sequence'
  loss.nll_prompt = False  # orpo: the NLL covers the prompt too, as in TRL
  loss.gamma = optional(float)  # simpo: margin,
  loss.gamma_ratio = optional(float)  # or margin / beta
  loss.ld_alpha = optional(float)  # LD-DPO; None: off
  return config
