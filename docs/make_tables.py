"""Write the pages of measured figures from docs/benchmarks/*.json.

  python docs/make_tables.py

Every table names the script that measured it, the hardware and the date. A
missing file has no section, or one that says so. A test fails when a page is not current.
"""

import json
import pathlib

from tables import performance, results, training_free

DOCS = pathlib.Path(__file__).parent
FIGURES = DOCS / 'benchmarks'

PAGES = {
  'results.md': results,
  'results_training_free.md': training_free,
  'performance.md': performance,
}


def make_page(name: str) -> str:
  """Return the text of one of `PAGES`."""
  page = PAGES[name]
  parts = [page.HEAD.strip()]
  for figures, section in page.SECTIONS.items():
    path = FIGURES / f'{figures}.json'
    if path.exists():
      parts.append(section(json.loads(path.read_text())))
    elif figures in page.NOT_MEASURED:
      parts.append(page.NOT_MEASURED[figures].strip())
  return '\n\n'.join(parts) + '\n'


def main() -> None:
  """Write every page."""
  for name in PAGES:
    (DOCS / name).write_text(make_page(name))


if __name__ == '__main__':
  main()
