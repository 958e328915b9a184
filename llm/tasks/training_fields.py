"""The fields that all training configs share, with their defaults."""

from ml_collections import config_dict

from llm.models.config import FRESH_SHAPE


def training_fields(task: str) -> config_dict.ConfigDict:
  """A new, unlocked config with every shared field.

  Args:
    task: name of the kind of run, see `llm.tasks.run.TASKS`.
  """
  config = config_dict.ConfigDict()
  config.task = task
  config.seed = 0  # of fresh parameters and of a step's random numbers
  config.dtype = 'float32'  # of the computation; parameters are float32
  config.model = _model()
  config.tokenizer = config_dict.ConfigDict()
  # None: with the model. 'bytes', a folder or a file.
  config.tokenizer.path = config_dict.placeholder(str)
  config.tokenizer.add_tokens = ()  # such as ('<think>', '</think>')
  config.data = _data()
  config.train = _train()
  config.optim = _optim()
  config.loss = config_dict.ConfigDict()
  config.lora = _lora()
  config.mesh = config_dict.ConfigDict()
  config.mesh.data = -1  # devices along each axis; -1: those that are left
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  config.sample = _sample()
  config.log = config_dict.ConfigDict()
  config.log.tensorboard = False  # into WORKDIR/tensorboard
  config.log.wandb = config_dict.ConfigDict()
  config.log.wandb.project = config_dict.placeholder(str)  # None: off
  config.log.wandb.name = config_dict.placeholder(str)
  config.log.wandb.mode = 'online'  # or 'offline'
  config.export = config_dict.placeholder(str)  # Hugging Face folder to write
  return config


def _model():
  model = config_dict.ConfigDict()
  # A Hugging Face folder or a llama2.c .bin; None: a fresh Llama, whose shape
  # is below (None: see FRESH_SHAPE) and whose vocabulary is the tokenizer's.
  model.path = config_dict.placeholder(str)
  for name, value in FRESH_SHAPE.items():
    model[name] = config_dict.placeholder(type(value))
  model.scan_layers = False  # one compiled layer: for deep models
  return model


def _data():
  data = config_dict.ConfigDict()
  data.path = config_dict.placeholder(str)  # a file, a folder or a glob
  data.eval_path = config_dict.placeholder(str)
  data.eval_fraction = 0.0  # or: this share, from the end of data.path
  data.max_length = 512  # tokens of a row
  data.packing = True  # several documents in a row; else lengths in buckets
  data.shuffle = True  # False: the order of the file
  data.seed = 0  # of the order
  data.overlong = 'truncate'  # rows above max_length; or 'drop', or 'split'
  # How conversations are rendered; a row's own columns of these names win.
  data.system = config_dict.placeholder(str)  # system prompt
  data.tools = config_dict.placeholder(str)  # JSON file: schemas of functions
  # Variables of the chat template: '{"enable_thinking": False}'
  data.chat_template_kwargs = config_dict.placeholder(str)
  data.separator = config_dict.placeholder(str)  # between documents of a text
  data.learn = 'all'  # of the assistant's turns; or 'last'
  data.ignore_columns = ()  # taken as missing; others that are unread are named
  # ((until, length), …): until a step, or a share of the run, rows are cut
  # into pieces of `length`; see llm/data/curriculum.py.
  data.curriculum = ()
  return data


def _train():
  train = config_dict.ConfigDict()
  train.steps = 1000
  train.batch_size = 8  # rows of an optimizer step, over all devices
  train.microbatch_size = 0  # rows of one forward and backward; 0: all
  train.log_every = 1
  train.eval_every = 0  # 0: at the end only
  train.eval_first = False  # True: before the first step, too
  train.checkpoint_every = 0  # 0: at the end only
  train.keep = 3  # newest checkpoints
  # The best by this is kept besides, saved when it is evaluated; '': none.
  train.best = 'eval_loss'
  train.export = 'last'  # or 'best': which state `export` writes
  train.max_bad_steps = 10  # in a row without a finite gradient: stop
  train.ema_decay = 0.0  # of a moving average that is evaluated; 0: none
  train.remat = 'none'  # or 'dots' or 'full': recompute in the backward pass
  return train


def _optim():
  optim = config_dict.ConfigDict()
  optim.name = 'adamw'  # adamw8bit, adafactor, lion, muon, sgd
  optim.lr = 3e-4
  optim.schedule = 'cosine'  # constant, linear, wsd
  optim.warmup_steps = 0
  optim.min_lr_ratio = 0.0  # of lr, at the end
  optim.decay_fraction = 0.1  # of all steps; wsd only
  optim.decay_shape = 'sqrt'  # or linear; wsd only
  optim.weight_decay = 0.0  # of kernels and embeddings
  optim.b1 = 0.9
  optim.b2 = 0.999
  optim.eps = 1e-8
  optim.clip_norm = 1.0  # 0: no clipping
  optim.groups = ()  # see llm/train/groups.py
  return optim


def _lora():
  lora = config_dict.ConfigDict()
  lora.path = config_dict.placeholder(str)  # PEFT folder to start from
  lora.rank = 0  # 0: all parameters are trained
  lora.alpha = 16.0
  # What each setting names, and how: llm/models/lora_config.py.
  lora.targets = ('all-linear',)  # projections, tables, or regular expressions
  lora.exclude = ()  # of these, not
  lora.layers = ()  # numbers of the layers that are adapted; (): all
  lora.rank_pattern = ()  # (("v_proj", 8), …): other ranks, the first that fits
  lora.alpha_pattern = ()
  # Trained as whole copies: embed_tokens, lm_head, norm (all), or paths.
  lora.modules_to_save = ()
  lora.tokens = ()  # rows that are trained: (("embed_tokens", (5, 9)),)
  lora.dora = False
  lora.rslora = False
  lora.dropout = 0.0
  lora.export = config_dict.placeholder(str)  # PEFT folder to write
  return lora


def _sample():
  sample = config_dict.ConfigDict()
  sample.prompts = ()  # continued at each evaluation, into samples.jsonl
  sample.chat = False  # each prompt is what a user says
  sample.max_new_tokens = 64
  sample.temperature = 0.0
  return sample
