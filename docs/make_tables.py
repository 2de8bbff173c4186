"""Write the pages of measured figures, and parts of others.

From docs/benchmarks/*.json; a part lies between two comments of its page.

  python docs/make_tables.py

Every table names the script that measured it, the hardware and the date. A
missing file has no section, or one that says so. A test fails when a page is not current.
"""

import json
import pathlib

import make_pictures
from tables import deployed, evidence, performance, results, training_free

DOCS = pathlib.Path(__file__).parent
FIGURES = DOCS / 'benchmarks'

PAGES = {
  'results.md': results,
  'results_training_free.md': training_free,
  'performance.md': performance,
  'performance_deployed.md': deployed,
}
# Of other pages the parts between `<!-- from NAME.json -->` and `<!-- end -->`.
PARTS = {
  'results_trained.md': {
    'evidence': evidence.evidence_section,
    'evidence_on_cifar10': evidence.cifar10_section,
    'evidence_with_ten_epochs': evidence.ten_epochs_section,
    'evidence_with_tokens': evidence.tokens_section,
    'dilution_paths': evidence.paths_section,
  },
  '../README.md': {'evidence_with_tokens': evidence.evidence_rows},
}


def make_page(name: str) -> str:
  """Return the text of one of `PAGES`, or of one of `PARTS`."""
  if name in PARTS:
    return _with_parts(name)
  page = PAGES[name]
  parts = [page.HEAD.strip()]
  for image in getattr(page, 'PICTURES', ()):
    picture = make_pictures.PICTURES[image]
    words = make_pictures.in_words(picture)
    parts += [f'![{words}](images/{image})', picture.CAPTION]
  for figures, section in page.SECTIONS.items():
    path = FIGURES / f'{figures}.json'
    if path.exists():
      parts.append(section(json.loads(path.read_text())))
    elif figures in getattr(page, 'NOT_MEASURED', {}):
      parts.append(page.NOT_MEASURED[figures].strip())
  return '\n\n'.join(parts) + '\n'


def _with_parts(name: str) -> str:
  """The page as it is, with its parts made anew."""
  page = (DOCS / name).read_text()
  for figures, part in PARTS[name].items():
    begin, end = f'<!-- from {figures}.json -->', '<!-- end -->'
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    if not tail:
      raise ValueError(f'{name}: give it one {begin} and one {end}')
    found = json.loads((FIGURES / f'{figures}.json').read_text())
    page = f'{head}{begin}\n\n{part(found)}\n\n{end}{tail}'
  return page


def main() -> None:
  """Write every page."""
  for name in (*PAGES, *PARTS):
    (DOCS / name).write_text(make_page(name))


if __name__ == '__main__':
  main()
