"""The command line of a checkout: `python launch.py --help` says what it does.

The same as `llm-jax`, which an installation has.
"""

import sys

from llm.start import start

if __name__ == '__main__':
  sys.exit(start())
