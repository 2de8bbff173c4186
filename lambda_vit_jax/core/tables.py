"""Small tables for terminals (rich) and notebooks (HTML)."""

import abc
import dataclasses
import html
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Table:
  """A titled table of texts; rich and notebooks know how to show it."""

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str = ''

  def __rich__(self) -> Any:
    import rich.table

    table = rich.table.Table(title=self.title, caption=self.caption or None)
    for name in self.header:
      table.add_column(name, justify='right')
    for row in self.rows:
      table.add_row(*row)
    return table

  def _repr_html_(self) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
      inner = ''.join(f'<{tag}>{html.escape(c)}</{tag}>' for c in cells)
      return f'<tr>{inner}</tr>'

    body = ''.join(row(cells, 'td') for cells in self.rows)
    return (
      f'<table><caption>{html.escape(self.title)}</caption>'
      f'<thead>{row(self.header, "th")}</thead><tbody>{body}</tbody></table>'
      + (f'<p>{html.escape(self.caption)}</p>' if self.caption else '')
    )


class Shown(abc.ABC):
  """Gives a dataclass with a method `table` its rich and HTML forms."""

  @abc.abstractmethod
  def table(self) -> Table:
    """The table to show."""

  def __rich__(self) -> Any:
    return self.table().__rich__()

  def _repr_html_(self) -> str:
    return self.table()._repr_html_()
