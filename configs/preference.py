r"""Preference optimisation on pairs of completions: DPO and its variants, KTO.

  python launch.py --config=configs/preference.py --workdir=runs/dpo \
    --config.model.path=PATH --config.data.path=PAIRS.jsonl --config.export=OUT

Rows are `{"prompt", "chosen", "rejected"}` (strings or message lists), whole
conversations, Alpaca or ShareGPT with `chosen` and `rejected`. `loss.name` is
dpo, cdpo, robust_dpo, hinge, ipo, dpo_norm, rpo, simpo, cpo, orpo or kto. The
rows of kto are `{"prompt", "completion", "label"}`, or pairs, each of which
becomes two such rows. Expected: the loss of dpo falls from ln 2,
`reward_accuracy` and `reward_margin` rise. All fields: docs/preferences.md.
"""

from ml_collections import config_dict

from llm.config_args import parse_arg
from llm.tasks.training_fields import training_fields


def get_config(arg=None):
  """Every field of a preference run; there are no bundles to choose."""
  parse_arg(arg)
  config = training_fields('preference')
  config.data.packing = False  # a row is a pair; True: several pairs in a row
  config.train.steps = 200
  config.train.batch_size = 16  # rows: pairs, unless they are packed
  config.train.eval_every = 50
  config.optim.lr = 1e-6
  config.optim.warmup_steps = 10
  config.optim.schedule = 'linear'
  loss = config.loss
  loss.name = 'dpo'
  # None: the loss's own default. A field that a loss does not read is refused.
  loss.beta = config_dict.placeholder(float)
  loss.label_smoothing = config_dict.placeholder(float)  # cdpo, robust, …
  loss.logprobs = config_dict.placeholder(str)  # ipo: 'mean' or 'sum'
  loss.alpha = config_dict.placeholder(float)  # rpo, cpo: weight of the NLL
  loss.nll = config_dict.placeholder(str)  # rpo: 'token' or 'sequence'
  loss.nll_prompt = False  # orpo: the NLL covers the prompt too, as in TRL
  loss.gamma = config_dict.placeholder(float)  # simpo: margin,
  loss.gamma_ratio = config_dict.placeholder(float)  # or margin / beta
  loss.desirable_weight = config_dict.placeholder(float)  # kto: of good answers
  loss.undesirable_weight = config_dict.placeholder(float)  # kto: of bad ones
  loss.ld_alpha = config_dict.placeholder(float)  # LD-DPO; None: off
  # How the model before training is read: log-probabilities computed once and
  # kept on disk ('precomputed'), its parameters beside the trained ones
  # ('frozen'), or the base under LoRA ('base'). None: 'precomputed'; for kto,
  # whose rows are new in each batch, 'base' under LoRA and else 'frozen'.
  loss.reference = config_dict.placeholder(str)
  return config
