"""Small tables for the Python prompt, terminals (rich) and notebooks."""

import abc
import dataclasses
import html
from collections.abc import Sequence
from typing import Any

from lambda_vit_jax.core.text import printable

# Lines that a prompt shows of an object, its title and caption included.
MOST_LINES = 20


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of strings, shown as plain text, by rich or as HTML."""

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str = ''

  def __str__(self) -> str:
    """Plain text of at most `MOST_LINES` lines; later rows are left out."""
    rows = [
      [printable(cell) for cell in row]
      for row in (self.header, *self.rows)
      if any(row)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    body = [
      '  '
      + '  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
      for row in rows
    ]
    ends = [self.caption] if self.caption else []
    room = MOST_LINES - 1 - len(ends)
    if len(body) > room:
      left = len(body) - room + 1
      body = [*body[: room - 1], f'  … {left} more rows']
    lines = (printable(self.title), *body, *map(printable, ends))
    return '\n'.join(line.rstrip() for line in lines)

  def __rich__(self) -> Any:
    import rich.table
    import rich.text

    table = rich.table.Table(
      title=rich.text.Text(printable(self.title)),
      caption=rich.text.Text(printable(self.caption)) if self.caption else None,
    )
    for name in self.header:
      table.add_column(rich.text.Text(printable(name)), justify='right')
    for row in self.rows:
      table.add_row(*(rich.text.Text(printable(cell)) for cell in row))
    return table

  def _repr_html_(self) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
      texts = (html.escape(printable(cell)) for cell in cells)
      inner = ''.join(f'<{tag}>{text}</{tag}>' for text in texts)
      return f'<tr>{inner}</tr>'

    body = ''.join(row(cells, 'td') for cells in self.rows)
    return (
      f'<table><caption>{html.escape(printable(self.title))}</caption>'
      f'<thead>{row(self.header, "th")}</thead><tbody>{body}</tbody></table>'
      + (
        f'<p>{html.escape(printable(self.caption))}</p>' if self.caption else ''
      )
    )


class Shown(abc.ABC):
  """Base of classes that are shown as a table, by their method `table`.

  A dataclass needs `repr=False`, or its own `repr` prints every array.
  """

  @abc.abstractmethod
  def table(self) -> Table:
    """The table to show."""

  def __repr__(self) -> str:
    return str(self.table())

  def __rich__(self) -> Any:
    return self.table().__rich__()

  def _repr_html_(self) -> str:
    return self.table()._repr_html_()
