"""Print tables and lines on stdout, for a terminal or for a file."""

import sys
from collections.abc import Iterable, Sequence

import rich.console
import rich.table

# Characters per line where stdout is no terminal: the widest table fits.
_WIDTH = 160


def stdout_console() -> rich.console.Console:
  """Returns a console on today's stdout."""
  console = rich.console.Console(file=sys.stdout, highlight=False)
  if not console.is_terminal:
    console.width = _WIDTH
  return console


def print_table(
  columns: Sequence[str], rows: Iterable[Iterable[str]]
) -> rich.console.Console:
  """Prints a table of figures, names first; returns the console."""
  table = rich.table.Table(*columns)
  for column in table.columns[1:]:
    column.justify = 'right'
  for row in rows:
    table.add_row(*row)
  console = stdout_console()
  console.print(table)
  return console
