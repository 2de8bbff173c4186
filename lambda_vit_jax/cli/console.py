"""Print tables and lines on stdout, for a terminal or for a file."""

import sys
from collections.abc import Iterable, Sequence

import rich.console
import rich.table

from lambda_vit_jax.core.text import printable

# Characters per line where stdout is no terminal: the widest table fits.
_WIDTH = 160


def stdout_console() -> rich.console.Console:
  """Returns a console on today's stdout, for text as it is."""
  # Names from files may look like rich's markup or emoji codes.
  console = rich.console.Console(
    file=sys.stdout, highlight=False, markup=False, emoji=False
  )
  if not console.is_terminal:
    console.width = _WIDTH
  return console


def print_table(columns: Sequence[str], rows: Iterable[Iterable[str]]) -> None:
  """Prints a table of figures, names first."""
  table = rich.table.Table(*columns)
  for column in table.columns[1:]:
    column.justify = 'right'
  for row in rows:
    table.add_row(*map(printable, row))
  stdout_console().print(table)


def print_line(line: str) -> None:
  """Prints one line, whatever is in it, however long it is."""
  print(printable(line))
