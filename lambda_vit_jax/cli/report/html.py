"""Pieces of the report page, as self-contained HTML.

Everything that comes from a file is escaped, and the page forbids itself to
load anything (its content security policy), so that a report of somebody
else's run can be opened.
"""

import base64
import dataclasses
import html
import re
from collections.abc import Callable, Iterable, Sequence

from lambda_vit_jax.cli.report import style
from lambda_vit_jax.core.text import LONGEST_LINE, printable

_POLICY = (
  "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
  "script-src 'unsafe-inline'"
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One cell of a table.

  Attributes:
    text: what is shown.
    value: what it is sorted by, a number or a text; None sorts last.
  """

  text: str
  value: float | str | None = None


def cell(value: float | None, form: Callable[[float], str]) -> Cell:
  """A figure in the given form; a dash where it is not known."""
  return Cell('–') if value is None else Cell(form(value), value)


def texts(rows: Iterable[Iterable[Cell]]) -> list[list[str]]:
  """What the cells of each row show."""
  return [[cell.text for cell in row] for row in rows]


def number(value: float | None) -> str:
  """Four digits; a dash for none."""
  return '–' if value is None else f'{value:.4g}'


def escape(value: object, longest: int = LONGEST_LINE) -> str:
  """The text of any value, safe in HTML and in attributes; a long one is cut."""
  return html.escape(printable(value, longest))


def page(title: str, parts: Iterable[str]) -> str:
  """A whole page from its parts, which are HTML already."""
  return '\n'.join(
    [
      '<!doctype html>',
      '<html lang="en"><head><meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
      f'<title>{escape(title)}</title><style>{style.sheet()}</style></head><body>',
      f'<main><h1>{escape(title)}</h1>',
      *parts,
      f'</main><script>{style.SCRIPT}</script></body></html>\n',
    ]
  )


def _head(columns: Sequence[str]) -> str:
  names = ''.join(f'<th scope="col">{escape(name)}</th>' for name in columns)
  return f'<thead><tr>{names}</tr></thead>'


def table(
  columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str
) -> str:
  """A table that the reader can sort; on a phone one card per row."""
  body = ''.join(
    '<tr>'
    + ''.join(
      f'<td data-label="{escape(name)}" '
      f'data-value="{"" if cell.value is None else escape(cell.value)}">'
      f'{escape(cell.text)}</td>'
      for name, cell in zip(columns, row, strict=True)
    )
    + '</tr>'
    for row in rows
  )
  return (
    f'<table class="sortable stack" aria-label="{escape(caption)}">'
    f'{_head(columns)}<tbody>{body}</tbody></table>'
  )


def facts(rows: Iterable[tuple[str, str]]) -> str:
  """What was done, as (what, HTML)."""
  inner = ''.join(
    f'<div><dt>{escape(name)}</dt><dd>{value}</dd></div>'
    for name, value in rows
  )
  return f'<dl class="facts">{inner}</dl>'


def lead(rows: Iterable[tuple[str, str, str]]) -> str:
  """What to see first, as (what, in words, how it was found)."""
  inner = ''.join(
    f'<div><dt>{escape(name)}</dt><dd><strong>{escape(words)}</strong> '
    f'<span class="soft">{escape(detail)}</span></dd></div>'
    for name, words, detail in rows
  )
  return f'<dl class="lead">{inner}</dl>' if inner else ''


def soft(text: str) -> str:
  """A paragraph beside the main thing."""
  return f'<p class="soft">{escape(text)}</p>'


def figure(
  svg: str, caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
  """A plot, its caption, and its numbers as a table for screen readers."""
  label = escape(caption)
  drawn = own_ids(svg).replace('<svg', f'<svg role="img" aria-label="{label}"')
  return (
    f'<figure>{drawn}<figcaption>{label}</figcaption>'
    f'{numbers("The same in numbers", columns, rows, caption)}</figure>'
  )


def numbers(
  title: str,
  columns: Sequence[str],
  rows: Sequence[Sequence[str]],
  caption: str = '',
) -> str:
  """A table that unfolds below its title."""
  label = escape(caption or title)
  body = ''.join(
    '<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>'
    for row in rows
  )
  return (
    f'<details><summary>{escape(title)}</summary>'
    f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
    f'<table>{_head(columns)}<tbody>{body}</tbody></table></div></details>'
  )


def picture(
  png: bytes, size: tuple[int, int], caption: str, kind: str = 'wide'
) -> str:
  """A PNG of (width, height) with its caption, inside the page.

  Args:
    png: the file.
    size: in pixels.
    caption: also its text alternative.
    kind: `wide` for one of the page's width, `small` for one of many.
  """
  width, height = size
  label = escape(caption)
  data = base64.b64encode(png).decode()
  return (
    f'<figure class="{kind}"><svg role="img" aria-label="{label}" '
    f'viewBox="0 0 {width} {height}"><image width="{width}" '
    f'height="{height}" href="data:image/png;base64,{data}"/></svg>'
    f'<figcaption>{label}</figcaption></figure>'
  )


def own_ids(svg: str) -> str:
  """An SVG without the ids that nothing in it refers to.

  Several drawings on one page would share them.
  """
  used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
  return re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else '', svg)


def links(names: Iterable[str]) -> str:
  """Files beside the page."""
  inner = ''.join(
    f'<li><a href="{escape(name)}"><code>{escape(name)}</code></a></li>'
    for name in names
  )
  return f'<ul class="files">{inner}</ul>'
