"""Pages and pictures of docs/ agree with the figures."""

import html
import json
import pathlib
import runpy

import pytest

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
MAKER = runpy.run_path(str(DOCS / 'make_tables.py'))
PAINTER = runpy.run_path(str(DOCS / 'make_pictures.py'))


@pytest.mark.parametrize('name', [*MAKER['PAGES'], *MAKER['PARTS']])
def test_page_is_current(name):
  assert (DOCS / name).read_text() == MAKER['make_page'](name), (
    'run `python docs/make_tables.py`'
  )


@pytest.mark.parametrize('name', PAINTER['PICTURES'])
def test_pictures_are_of_the_figures(name):
  """The description in the file lists every point."""
  picture = PAINTER['PICTURES'][name]
  words = picture.describe(PAINTER['figures'](picture))
  assert (
    html.escape(words, quote=False) in (DOCS / 'images' / name).read_text()
  ), 'run `python docs/make_pictures.py`'


def test_a_picture_says_in_words_what_is_measured():
  figures = json.loads((DOCS / 'benchmarks' / 'compress.json').read_text())
  readme = (DOCS.parent / 'README.md').read_text()
  alternative = readme.partition('![Accuracy against speed-up')[2]
  for found in figures.values():
    for row in found['rows'].values():
      if row.get('speedup'):
        assert f'{100 * row["top1"]:.1f}' in alternative.partition(']')[0]
  rows = json.loads((DOCS / 'benchmarks' / 'real_backbone.json').read_text())
  page = (DOCS / 'results.md').read_text()
  alternative = page.partition('![Change of accuracy')[2].partition('](')[0]
  for found in rows.values():
    for key, row in found['rows'].items():
      if 'change' in row and key.startswith('0 '):
        change, half = (f'{100 * value:.1f}' for value in row['change'])
        assert f'{key[2:]} {change} ± {half}' in alternative
