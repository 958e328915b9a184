"""From nothing to a language model that answers, on a laptop, in minutes.

  python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
  python launch.py --config=configs/quickstart.py:smoke --workdir=runs/smoke

Needs no file. Generates a world and its texts, trains a SentencePiece
tokenizer, pretrains a Llama of 0.87M parameters on the texts (450 steps),
fine-tunes it on questions and answers (40 steps), on pairs of right and wrong
answers (DPO, 60 steps) and with a reward for right sums (GRPO, 50 steps), saves
it as a Hugging Face folder, generates from it and marks its answers by the
world's ledger. A stage that is done is not repeated, and one that was killed
resumes.

Expected (seed 0; 3.1 minutes of processor time): the loss of pretraining falls
from 6.27 to 0.41 nats. Right answers, 0% before training:
                                   pretrain   sft  preference    rl
  popular people, asked in training     13%  100%        100%  100%
  popular people, only read about       16%   76%         79%   84%
  rare people                           13%   46%         50%   52%
  people: never written                  0%    3%          0%    0%
  sums: written                         42%   77%         78%   95%
  sums: never written                1 of 7 1 of 7     1 of 7 0 of 7
Then talk to it:
  python launch.py --config=configs/generate.py --config.chat=True \
    --config.model.path=runs/quickstart/model
"""

import pathlib

from ml_collections import config_dict

from llm import config_args
from llm.tasks.training_fields import training_fields


def get_config(arg=None):
  """Every field of the quickstart; `:smoke` is a run of seconds for tests."""
  arg = config_args.parse_arg(arg, smoke=False)
  small = arg.smoke
  config = config_dict.ConfigDict()
  config.task = 'quickstart'
  config.seed = 0

  world = config.world = config_dict.ConfigDict()
  world.size = 7 if small else 56  # people
  world.max_operand = 4 if small else 9  # of the sums a + b
  world.sum_exposures = 12 if small else 6  # written and asked, per sum
  world.held_out = 0.1  # share of facts that are never written
  world.quizzes = True  # the texts have questions with answers, too

  config.tokenizer = config_dict.ConfigDict()
  config.tokenizer.vocab_size = 384 if small else 512

  model = config.model = config_dict.ConfigDict()
  model.embed_dim = 64 if small else 128
  model.hidden_dim = 128 if small else 352
  model.num_layers = 2 if small else 4
  model.num_heads = 2 if small else 4
  model.num_kv_heads = 1 if small else 4
  model.head_dim = 32
  model.max_length = 256  # tokens that a row may have in generation

  config.data = config_dict.ConfigDict()
  config.data.max_length = 192  # tokens of a packed row

  config.pretrain = _training('pretrain', steps=80 if small else 450)
  config.pretrain.optim.lr = 0.01 if small else 0.003
  config.sft = _training('sft', steps=40)
  config.sft.optim.lr = 0.003 if small else 0.001

  config.preference = _preference(small)
  config.rl = _rl(small)

  config.exam = config_dict.ConfigDict()
  config.exam.batch_size = 128 if small else 64  # questions at a time
  config.exam.max_new_tokens = 16  # of an answer
  config.exam.text_tokens = 16 if small else 64  # of a free text
  return config


def _preference(small):
  stage = _training('preference', steps=10 if small else 60)
  stage.batch_size = 16  # pairs
  stage.optim.lr = 1e-4
  stage.optim.warmup_steps = 5 if small else 20
  stage.loss = _fields('preference').loss
  return stage


def _rl(small):
  stage, fields = _training('rl', steps=4 if small else 50), _fields('rl')
  stage.batch_size = 4 if small else 32  # sums of a rollout
  stage.optim.lr = 2e-4
  stage.optim.warmup_steps = 2 if small else 5
  stage.loss, stage.rewards = fields.loss, fields.rewards
  stage.loss.kl_coef = 0.0
  stage.rollout = fields.rollout
  stage.rollout.max_new_tokens = 4  # of an answer, its end included
  return stage


def _fields(name):
  """The fields of another kind of run, from its own config."""
  folder = pathlib.Path(__file__).parent
  return config_args.load_config(str(folder / f'{name}.py'))


def _training(task, steps):
  """The fields in which a training stage differs from training_fields."""
  stage = config_dict.ConfigDict()
  stage.steps = steps
  stage.batch_size = 8  # rows
  stage.checkpoint_every = 100  # steps
  stage.optim = training_fields(task).optim
  stage.optim.schedule = 'linear'
  stage.optim.warmup_steps = 20
  stage.optim.weight_decay = 0.1
  stage.optim.b2 = 0.95
  return stage
