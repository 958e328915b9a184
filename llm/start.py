"""How the command line starts: what comes before its imports."""

import os
import sys

from llm.host import memory


def start() -> int:
  """Runs the command line of this process; returns the exit status."""
  # First of all: whatever is imported before is imported twice.
  memory.restart_with_huge_pages()
  # Last, so that it hides nothing: configs may name modules of this folder.
  sys.path.append(os.getcwd())
  from llm import command

  return command.main(sys.argv)
