"""docs/results.md and docs/performance.md agree with the figures."""

import pathlib
import runpy

import pytest

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
MAKER = runpy.run_path(str(DOCS / 'make_tables.py'))


@pytest.mark.parametrize('name', MAKER['PAGES'])
def test_page_is_current(name):
  assert (DOCS / name).read_text() == MAKER['make_page'](name), (
    'run `python docs/make_tables.py`'
  )
