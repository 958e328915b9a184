"""Packages of llm-jax and what each of them is needed for."""

import pathlib

import setuptools

# Each dependency says what it is for; a feature that only some users need is
# an extra. Tested versions are in constraints.txt.
CORE = [
  'absl-py',  # flags of the command line
  'flax>=0.12',  # Linen modules of llm/models
  'jax>=0.10',  # arrays, jit, grad, sharding
  'jinja2>=3.1',  # chat templates
  'matplotlib',  # figures of training runs and of experiments
  'ml_collections>=1.0',  # config files and their overrides
  'ml_dtypes',  # bfloat16 in safetensors files
  'numpy',  # host-side arrays
  'protobuf',  # editing SentencePiece's model file (llama2.c vocabularies)
  'rich>=13',  # progress bars and tables in the terminal
  'sentencepiece>=0.2',  # .model tokenizers, and training one
  'tokenizers>=0.20',  # tokenizer.json
  'zstandard',  # .zst files of training data
]
# What training needs besides.
TRAIN = [
  'grain>=0.2.12',  # reading ahead, and the place in the data that is kept
  'optax>=0.2',  # optimizers
  'orbax-checkpoint>=0.11',  # checkpoints of training runs
  'pyarrow',  # Parquet files of training data
]
EXTRAS = {
  'train': TRAIN,
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
    *TRAIN,
    'pytest',  # runs tests/
    'pytest-xdist',  # in two processes: compiling takes one core each
    'ruff',  # lint and format
    'safetensors>=0.5',  # the independent reader and writer of its files
    'setuptools>=77',  # builds the wheel that a test installs
  ],
  # Compilers for devices that are not here (docs/compilers.md); 1.2 GB.
  'aot': [
    'jax[tpu]',
    'jax-cuda12-pjrt',
    'jax-cuda12-plugin',
    'nvidia-cuda-nvcc-cu12',  # NVIDIA's assembler and device library
  ],
  # The independent implementations that tests/parity compares with.
  'parity': [
    *TRAIN,
    'gguf',  # writes the file that llama.cpp reads, for the speed comparison
    'hypothesis',  # draws rows of any shape for tests/parity/test_fuzz_rows.py
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
  long_description=pathlib.Path('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  url='https://github.com/llm-jax/llm-jax',
  license='Apache-2.0',
  license_files=['LICENSE'],
  classifiers=[
    'Development Status :: 4 - Beta',
    'Intended Audience :: Science/Research',
    'Operating System :: MacOS',
    'Operating System :: POSIX :: Linux',
    'Programming Language :: Python :: 3 :: Only',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
  packages=[*setuptools.find_packages(include=['llm', 'llm.*']), 'llm.configs'],
  package_dir={'llm.configs': 'configs'},  # in a checkout they are at the top
  include_package_data=True,  # what MANIFEST.in names below the packages
  entry_points={'console_scripts': ['llm-jax = llm.start:start']},
  python_requires='>=3.11',
  install_requires=CORE,
  extras_require=EXTRAS,
)
