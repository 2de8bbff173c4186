"""docs/layouts.md agrees with what loading each of its files does."""

import pathlib
import runpy

import pytest

DOCS = pathlib.Path(__file__).parents[2] / 'docs'


@pytest.mark.slow
def test_page_is_current():
  maker = runpy.run_path(str(DOCS / 'make_layouts.py'))
  page = (DOCS / 'layouts.md').read_text()
  assert page == maker['make_page'](), 'run `python docs/make_layouts.py`'
  # 30 at least, so that an empty list of cases does not pass.
  assert page.count('\n| ') > 30
