r"""Generate text from a checkpoint.

One prompt, streamed to the terminal:
  python launch.py --config=configs/generate.py \
    --config.model.path=PATH --config.prompt="Once upon a time"
A file of prompts (JSONL):
  python launch.py --config=configs/generate.py --config.model.path=PATH \
    --config.prompts_file=IN.jsonl --config.output=OUT.jsonl
A chat in the terminal:
  python launch.py --config=configs/generate.py --config.model.path=PATH \
    --config.chat=True --config.system="You are terse."

PATH is a Hugging Face model folder or a llama2.c `.bin`. Expected: the text,
then a table with the time to the first token, tokens per second of both phases
and the share of the machine's memory bandwidth that decoding reached. Fields
and rows: docs/generation.md.
"""

from ml_collections import config_dict

from llm.config_args import parse_arg


def get_config(arg=None):
  """Every field of a generation run; there are no bundles to choose."""
  parse_arg(arg)
  optional = config_dict.placeholder
  config = config_dict.ConfigDict()
  config.task = 'generate'
  config.model = config_dict.ConfigDict()
  config.model.path = optional(str)
  config.lora = config_dict.ConfigDict()
  config.lora.path = optional(str)  # a PEFT folder to add to the model
  config.tokenizer = config_dict.ConfigDict()
  config.tokenizer.path = optional(str)  # None: beside the model
  # What to continue: one of these three. An empty prompt starts from BOS alone.
  config.prompt = optional(str)
  config.prompts_file = optional(str)
  config.chat = False
  config.output = optional(str)  # JSONL; needed with prompts_file
  # Of messages and of a chat; a row's own columns of these names win.
  config.system = optional(str)  # system prompt
  config.tools = optional(str)  # JSON file: schemas of functions
  # Variables of the chat template: '{"enable_thinking": False}'
  config.chat_template_kwargs = optional(str)

  config.dtype = 'float32'  # of params and cache; on a CPU the fastest
  config.batch_size = 8  # rows decoded together
  config.chunk_steps = 16  # tokens per compiled call; fewer stream smoother
  config.prefill_chunk = optional(int)  # prompt tokens per call; None: all
  config.max_length = optional(int)  # tokens a row may have; None: the model's

  sampling = config.sampling = config_dict.ConfigDict()
  sampling.max_new_tokens = optional(int)  # None: 128, or fewer if no more fit
  sampling.min_new_tokens = 0
  # What is not set here: 'neutral', as the comments say, or 'model', as its
  # generation_config.json recommends. None: model in a chat, else neutral.
  sampling.defaults = optional(str)
  sampling.temperature = optional(float)  # 1; 0: greedy
  sampling.top_k = optional(int)  # 0: off
  sampling.top_p = optional(float)  # 1: off
  sampling.min_p = optional(float)  # 0: off
  sampling.typical_p = optional(float)  # 1: off
  sampling.epsilon = optional(float)  # 0: off
  sampling.eta = optional(float)  # 0: off
  sampling.repetition_penalty = optional(float)  # 1; over prompt and completion
  sampling.presence_penalty = 0.0  # over the completion
  sampling.frequency_penalty = 0.0  # over the completion
  sampling.no_repeat_ngram = optional(int)  # 0: off
  sampling.logit_bias = optional(str)  # '{"TOKEN_ID": BIAS, …}'
  sampling.allowed_ids = ()  # (): all
  sampling.forbidden_ids = ()
  sampling.dry_multiplier = 0.0  # 0: off
  sampling.dry_base = 1.75
  sampling.dry_allowed_length = 2
  sampling.dry_breakers = ()
  sampling.xtc_probability = 0.0  # 0: off
  sampling.xtc_threshold = 0.1
  sampling.seed = 0  # completion i of a prompt uses seed + i
  sampling.n = 1  # completions per prompt
  sampling.stop = ()  # strings; the text ends before the first of them
  sampling.stop_token_ids = ()
  sampling.ignore_eos = False
  sampling.logprobs = 0  # alternatives per token to write
  return config
