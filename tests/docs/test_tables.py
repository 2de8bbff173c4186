"""Pages and pictures of docs/ agree with the figures."""

import html
import json
import pathlib
import runpy

import pytest

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
MAKER = runpy.run_path(str(DOCS / 'make_tables.py'))


@pytest.mark.parametrize('name', [*MAKER['PAGES'], *MAKER['PARTS']])
def test_page_is_current(name):
  assert (DOCS / name).read_text() == MAKER['make_page'](name), (
    'run `python docs/make_tables.py`'
  )


def test_the_picture_of_the_readme_is_of_the_figures():
  """Its description lists every point; whose accuracy the README has in words."""
  maker = runpy.run_path(str(DOCS / 'make_pictures.py'))
  figures = json.loads(maker['FIGURES'].read_text())
  words = html.escape(maker['describe'](figures), quote=False)
  assert words in maker['PICTURE'].read_text(), (
    'run `python docs/make_pictures.py`'
  )
  readme = (DOCS.parent / 'README.md').read_text()
  alternative = readme.partition('![Accuracy against speed-up')[2]
  for found in figures.values():
    for curve in maker['curves'](found).values():
      for _, accuracy in curve:
        assert f'{accuracy:.1f}' in alternative.partition(']')[0]
