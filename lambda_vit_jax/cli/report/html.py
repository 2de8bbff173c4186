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

from lambda_vit_jax.core.text import printable

_POLICY = (
  "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
  "script-src 'unsafe-inline'"
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570;
  --paper: #ffffff; --card: #f5f7f9; --line: #d9dee3; --accent: #2563a8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed;
  --soft: #9aa5b1; --paper: #14171b; --card: #1d2127; --line: #343b44;
  --accent: #7db3ee; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 66rem; margin: 0 auto;
  padding: 1.25rem 1rem 3rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, dt, summary { color: var(--soft); }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
code { font-size: .92em; overflow-wrap: anywhere; }
.cards { display: grid; gap: .75rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.cards > div { background: var(--card); border-radius: .6rem;
  padding: .7rem .9rem; }
.cards dt { font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.2rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.blocks { display: flex; flex-wrap: wrap; gap: .3rem; padding: 0; margin: 0;
  list-style: none; }
.blocks li { min-width: 2.1rem; padding: .3rem .2rem; text-align: center;
  border: 1px solid var(--accent); border-radius: .35rem; font-size: .9rem; }
.blocks .gone { border: 1px dashed var(--line); color: var(--soft);
  text-decoration: line-through; }
table { border-collapse: collapse; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: ' \\2195'; color: var(--soft); }
[aria-sort=ascending] button::after { content: ' \\2191'; }
[aria-sort=descending] button::after { content: ' \\2193'; }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; padding: .9rem; background: var(--card);
  border-radius: .6rem; min-width: 0; max-width: 38rem; }
figure svg { display: block; width: 100%; max-width: 34rem; height: auto;
  margin: 0 auto; color: var(--ink); }
.wide, .wide svg { max-width: none; }
.wide { margin-bottom: 1rem; }
figure text { fill: currentColor; }
figcaption { font-size: .9rem; margin-top: .5rem; }
details { font-size: .9rem; margin-top: .4rem; }
summary { cursor: pointer; }
.scroll { max-height: 18rem; overflow: auto; }
.files { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0;
  list-style: none; }
@media (max-width: 42rem) {
  .stack thead tr { display: flex; flex-wrap: wrap; gap: .15rem .9rem; }
  .stack thead th { padding: .2rem 0; border: 0; }
  .stack, .stack thead, .stack tbody, .stack tr { display: block; }
  .stack tbody tr { background: var(--card); border-radius: .6rem;
    padding: .6rem .9rem; margin: .6rem 0; }
  .stack tbody td { display: flex; justify-content: space-between; gap: 1rem;
    padding: .15rem 0; border: 0; text-align: right; }
  .stack tbody td::before { content: attr(data-label); color: var(--soft); }
}
@media print { figure, .cards > div { break-inside: avoid; } }
"""

# Buttons in the heads of columns, so that the keyboard reaches them.
_SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute('aria-sort', 'none');
    button.addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach(other => other.setAttribute('aria-sort', 'none'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const key = row => row.cells[column].dataset.value;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === '' || y === '') return (x === '') - (y === '');
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    });
  });
}
"""


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


def escape(value: object) -> str:
  """The text of any value, safe in HTML and in attributes."""
  return html.escape(printable(value))


def page(title: str, parts: Iterable[str]) -> str:
  """A whole page from its parts, which are HTML already."""
  return '\n'.join(
    [
      '<!doctype html>',
      '<html lang="en"><head><meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
      f'<title>{escape(title)}</title><style>{_STYLE}</style></head><body>',
      f'<main><h1>{escape(title)}</h1>',
      *parts,
      f'</main><script>{_SCRIPT}</script></body></html>\n',
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


def cards(figures: Iterable[tuple[str, str]]) -> str:
  """The few numbers to see first, as (what, how much)."""
  inner = ''.join(
    f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>'
    for name, value in figures
  )
  return f'<dl class="cards">{inner}</dl>' if inner else ''


def blocks(
  depth: int,
  removed: Iterable[int],
  dropped: Iterable[int] = (),
  before: Iterable[int] = (),
) -> str:
  """The row of blocks, those without attention or dropped struck out."""
  state = dict.fromkeys(before, ', attention gone before')
  state |= dict.fromkeys(removed, ', attention removed')
  state |= dict.fromkeys(dropped, ', dropped')
  struck = ' class="gone"'
  inner = ''.join(
    f'<li{struck if k in state else ""} '
    f'aria-label="block {k}{state.get(k, "")}">{k}</li>'
    for k in range(depth)
  )
  return f'<ol class="blocks">{inner}</ol>'


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


def picture(png: bytes, size: tuple[int, int], caption: str) -> str:
  """A PNG of (width, height) with its caption, inside the page."""
  width, height = size
  label = escape(caption)
  data = base64.b64encode(png).decode()
  return (
    f'<figure class="wide"><svg role="img" aria-label="{label}" '
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
