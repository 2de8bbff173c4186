"""Print tables and lines on stdout, for a terminal or for a file."""

import sys

import rich.console

# Characters per line where stdout is no terminal: the widest table fits.
_WIDTH = 160


def stdout_console() -> rich.console.Console:
  """Returns a console on today's stdout."""
  console = rich.console.Console(file=sys.stdout, highlight=False)
  if not console.is_terminal:
    console.width = _WIDTH
  return console
