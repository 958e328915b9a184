"""The reference libraries: nothing from the network, no chatter."""

import os

# Before anything imports transformers.
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('TRL_EXPERIMENTAL_SILENCE', '1')
