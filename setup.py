"""Packages of llm-jax and what each of them is needed for."""

import setuptools

# Each dependency says what it is for; a feature that only some users need is
# an extra. Tested versions are in constraints.txt.
CORE = [
  'absl-py',  # command-line flags of launch.py
  'flax>=0.12',  # Linen modules of llm/models
  'grain>=0.2.12',  # reading ahead, and the place in the data that is kept
  'jax>=0.10',  # arrays, jit, grad, sharding
  'jinja2>=3.1',  # chat templates
  'matplotlib',  # figures of the experiments
  'ml_collections>=1.0',  # config files and their overrides
  'numpy',  # host-side arrays
  'optax>=0.2',  # optimizers
  'orbax-checkpoint>=0.11',  # checkpoints of training runs
  'pyarrow',  # Parquet files of training data
  'protobuf',  # editing SentencePiece's model file (llama2.c vocabularies)
  'rich>=13',  # progress bars and tables in the terminal
  'safetensors>=0.5',  # Hugging Face checkpoints
  'sentencepiece>=0.2',  # .model tokenizers, and training one
  'tokenizers>=0.20',  # tokenizer.json
  'zstandard',  # .zst files of training data
]
EXTRAS = {
  'cuda': ['jax[cuda13]'],  # NVIDIA GPUs
  'tpu': ['jax[tpu]'],  # Google TPUs
  # Copies of a run's metrics; metrics.jsonl needs neither.
  'logging': [
    'tensorboard',  # writes event files, without TensorFlow
    'wandb',  # Weights & Biases
  ],
  'serve': [
    'starlette',  # routes and streaming responses
    'uvicorn',  # the HTTP server
  ],
  'dev': [
    'pytest',  # runs tests/
    'pytest-xdist',  # in two processes: compiling takes one core each
    'ruff',  # lint and format
  ],
  # The independent implementations that tests/parity compares with.
  'parity': [
    'gguf',  # writes the file that llama.cpp reads, for the speed comparison
    'peft',  # LoRA adapters
    'torch',  # the reference's arrays
    'transformers>=5',  # model families, logits processors, tokenizers
    'trl',  # preference losses
  ],
}

setuptools.setup(
  name='llm-jax',
  version='0.1.0',
  description=(
    'Load, decode, fine-tune, align and measure language models in JAX'
  ),
  license='Apache-2.0',
  packages=setuptools.find_packages(include=['llm', 'llm.*']),
  python_requires='>=3.11',
  install_requires=CORE,
  extras_require=EXTRAS,
)
