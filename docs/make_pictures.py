"""Draw the pictures of the README and of docs/ from docs/benchmarks.

  python docs/make_pictures.py

The description in each file lists every point; a test fails when it is not that
of the figures. The README's text alternative is written, too; that of pages is
written by `make_tables.py`.
"""

import json
import pathlib
from typing import Any

from pictures import changes, frontier, removal

DOCS = pathlib.Path(__file__).parent
README = DOCS.parent / 'README.md'
PICTURES = {
  'frontier.svg': frontier,
  'changes.svg': changes,
  'removal.svg': removal,
}


def figures(picture: Any) -> dict[str, Any]:
  """What a picture shows, by file; a missing file has no part."""
  paths = {name: DOCS / 'benchmarks' / f'{name}.json' for name in picture.FILES}
  return {
    name: json.loads(path.read_text())
    for name, path in paths.items()
    if path.exists()
  }


def in_words(picture: Any) -> str:
  """The text alternative of a picture."""
  return f'{picture.TITLE}. {picture.describe(figures(picture))}'


def main() -> None:
  """Draws them anew."""
  for name, picture in PICTURES.items():
    picture.draw(figures(picture), DOCS / 'images' / name)
  head, _, rest = README.read_text().partition(f'![{frontier.TITLE}')
  tail = rest.partition('](')[2]
  README.write_text(f'{head}![{in_words(frontier)}]({tail}')


if __name__ == '__main__':
  main()
