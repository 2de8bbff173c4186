"""Colours, style sheet and script of the report page.

Every colour is here, so that a test can compute the contrast of each pair that
meets on the page, in light and in dark.
"""

LIGHT = {
  'ink': '#1b1f24',
  'soft': '#5b6570',
  'paper': '#ffffff',
  'card': '#f5f7f9',
  'line': '#d9dee3',
  'accent': '#2563a8',
}
"""Of a light page, and of print."""

DARK = {
  'ink': '#e6e9ed',
  'soft': '#9aa5b1',
  'paper': '#14171b',
  'card': '#1d2127',
  'line': '#343b44',
  'accent': '#7db3ee',
}
"""Of a dark page."""

PLOT = ('#3b82c4', '#c8621f', '#2f8f63', '#b05aab', '#94731a', '#d1504b')
"""Lines and marks, the same on light and dark cards; never of text."""

GREY = '#6b7480'
"""Marks that stay in the background of a plot."""


def _variables(colours: dict[str, str]) -> str:
  return ' '.join(f'--{name}: {value};' for name, value in colours.items())


def sheet() -> str:
  """The style sheet."""
  return (
    f':root {{ color-scheme: light dark; {_variables(LIGHT)} '
    f'--mark: {PLOT[0]}; --map: {PLOT[1]}; }}\n'
    '@media screen and (prefers-color-scheme: dark) { :root { '
    f'{_variables(DARK)} }} }}\n{_RULES}'
  )


_RULES = """
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 66rem; margin: 0 auto;
  padding: 1.25rem 1rem 3rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, dt, summary { color: var(--soft); }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
code { font-size: .92em; overflow-wrap: anywhere; }
dl { margin: 0; }
dd { margin: 0; }
.facts { display: grid; gap: .3rem 1rem; }
.facts > div { display: grid; gap: 0 1rem;
  grid-template-columns: 7.5rem minmax(0, 1fr); }
.facts pre { margin: 0; padding: .5rem .7rem; background: var(--card);
  border-radius: .4rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.facts pre span { display: inline-block; }
.copy { font: inherit; font-size: .85rem; margin-top: .3rem; padding: .15rem
  .7rem; color: var(--accent); background: var(--paper); cursor: pointer;
  border: 1px solid var(--accent); border-radius: .4rem; }
.lead { display: grid; gap: .75rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 11.5rem), 1fr)); }
.lead > div { background: var(--card); border-radius: .6rem;
  padding: .7rem .9rem; }
.lead dt { font-size: .85rem; }
.lead strong { display: block; }
.lead dd .soft { font-size: .85rem; line-height: 1.4; display: block; }
.network { display: grid; gap: .4rem; padding: 0; margin: .75rem 0;
  list-style: none; font-size: .8rem; line-height: 1.35;
  grid-template-columns: repeat(auto-fill, minmax(9.2rem, 1fr)); }
.network li { background: var(--card); border-radius: .5rem;
  padding: .45rem .55rem; border: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
.network .gone { border-style: dashed; border-color: var(--soft); }
.network b { font-size: .9rem; }
.network span { display: block; color: var(--soft); }
.network .bar { height: .5rem; margin: .15rem 0; border-radius: .2rem;
  border: 1px solid var(--mark); }
.network .bar i { display: block; height: 100%; background: var(--mark); }
.network .empty { border-style: dashed; }
.network .map, .network .map i { border-color: var(--map); }
.network .map i { background: var(--map); }
table { border-collapse: collapse; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .5rem; text-align: right;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
.scroll td { white-space: normal; }
th { font-weight: 600; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: ' \\2195'; color: var(--soft); }
[aria-sort=ascending] button::after { content: ' \\2191'; }
[aria-sort=descending] button::after { content: ' \\2193'; }
.figures { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.tiles { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
figure { margin: 0; padding: .9rem; background: var(--card);
  border-radius: .6rem; min-width: 0; max-width: 38rem; }
figure svg { display: block; width: 100%; max-width: 34rem; height: auto;
  margin: 0 auto; color: var(--ink); }
.wide, .wide svg { max-width: none; }
.wide { margin-bottom: 1rem; }
.small { padding: .6rem; }
.small svg { width: 6rem; height: 6rem; image-rendering: pixelated; }
figure text { fill: currentColor; }
figcaption { font-size: .9rem; margin-top: .5rem; }
.small figcaption { font-size: .8rem; line-height: 1.35; }
details { font-size: .9rem; margin-top: .4rem; }
summary { cursor: pointer; }
.scroll { max-height: 18rem; overflow: auto; }
.files { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0;
  list-style: none; }
@media (max-width: 42rem) {
  .facts > div { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 56rem) {
  .scroll th, .scroll td { padding: .3rem .35rem; }
  .stack thead tr { display: flex; flex-wrap: wrap; gap: .15rem .9rem; }
  .stack thead th { padding: .2rem 0; border: 0; }
  .stack, .stack thead, .stack tbody, .stack tr { display: block; }
  .stack tbody tr { background: var(--card); border-radius: .6rem;
    padding: .6rem .9rem; margin: .6rem 0; }
  .stack tbody td { display: flex; justify-content: space-between; gap: 1rem;
    padding: .15rem 0; border: 0; text-align: right; white-space: normal; }
  .stack tbody td::before { content: attr(data-label); color: var(--soft); }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  .copy, details, th button::after { display: none; }
  figure, tr, .lead > div, .network li { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .bar, .bar i { print-color-adjust: exact; }
}
"""

# The buttons are made here: without the script there are none that do nothing.
# Copying goes by way of the selection, which works for a file on a disk too,
# where browsers lend no clipboard.
SCRIPT = """
for (const text of document.querySelectorAll('.facts pre')) {
  const button = document.createElement('button');
  button.className = 'copy';
  button.textContent = 'Copy';
  button.addEventListener('click', () => {
    const selection = getSelection();
    selection.selectAllChildren(text);
    const copied = document.execCommand('copy');
    button.textContent = copied ? 'Copied' : 'Selected: press Ctrl+C';
  });
  text.after(button);
}
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
