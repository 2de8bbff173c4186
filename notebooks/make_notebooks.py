"""Write each notebook from its `.py` in jupytext's percent format.

  python notebooks/make_notebooks.py                 after an edit of a .py
  python notebooks/make_notebooks.py --owner NAME    once, for a fork

Edit and review the `.py`; `jupytext --sync` does the same. A test fails when a
pair does not agree.
"""

import argparse
import json
import pathlib
import re
from typing import Any

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parent

# The same for all notebooks, so that pairs can be compared.
_METADATA = {
  'accelerator': 'GPU',
  'jupytext': {'formats': 'ipynb,py:percent'},
  'kernelspec': {
    'display_name': 'Python 3',
    'language': 'python',
    'name': 'python3',
  },
  'language_info': {'name': 'python'},
}
_MARKER = re.compile(r'^# %%(?: \[(markdown)\])?\n', re.MULTILINE)
_OWNER = re.compile(r'(github(?:\.com)?/)[\w-]+(/lambda_vit_jax)')


def scripts() -> list[pathlib.Path]:
  """The `.py` side of every pair."""
  return sorted(p for p in FOLDER.glob('*.py') if '\n# %%' in p.read_text())


def _cell(kind: str | None, text: str, number: int) -> dict[str, Any]:
  text = text.strip('\n')
  if kind == 'markdown':
    lines = [re.sub(r'^# ?', '', line) for line in text.splitlines()]
    text = '\n'.join(lines)
  cell = {
    'cell_type': kind or 'code',
    'id': str(number),
    'metadata': {},
    'source': text.splitlines(keepends=True),
  }
  if kind is None:
    cell |= {'execution_count': None, 'outputs': []}
  return cell


def notebook(script: str) -> dict[str, Any]:
  """The notebook of a script, without what is above its first cell."""
  # Text, kind, text, kind, text, …: the first text is what is left out.
  parts = _MARKER.split(script)[1:]
  cells = [
    _cell(kind, text, number)
    for number, (kind, text) in enumerate(
      zip(parts[::2], parts[1::2], strict=True)
    )
  ]
  return {
    'cells': cells,
    'metadata': _METADATA,
    'nbformat': 4,
    'nbformat_minor': 5,
  }


def _name_owner(owner: str) -> None:
  """Puts a GitHub account into every link to this repository."""
  for path in scripts():
    path.write_text(_OWNER.sub(rf'\g<1>{owner}\g<2>', path.read_text()))


def main() -> None:
  """Writes all notebooks."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--owner')
  options = parser.parse_args()
  if options.owner:
    _name_owner(options.owner)
  for path in scripts():
    text = json.dumps(notebook(path.read_text()), indent=1, sort_keys=True)
    path.with_suffix('.ipynb').write_text(text + '\n')


if __name__ == '__main__':
  main()
