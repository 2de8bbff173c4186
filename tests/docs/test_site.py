"""The documentation is a site: no dead link, no page that nobody finds."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support import doc_pages

ROOT = doc_pages.ROOT
DOCS = ROOT / 'docs'
# Read in one sitting.
LINES_OF_A_PAGE = 300


@pytest.mark.parametrize('path', doc_pages.PAGES, ids=doc_pages.name)
def test_page_is_short(path):
  assert len(path.read_text().splitlines()) <= LINES_OF_A_PAGE


def test_every_page_is_in_the_navigation():
  """Without the extra `docs`, too: a build refuses such a page later."""
  navigation = (ROOT / 'mkdocs.yml').read_text().partition('\nnav:\n')[2]
  listed = re.findall(r'([\w/]+\.md)$', navigation, re.MULTILINE)
  here = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob('*.md')]
  assert sorted(listed) == sorted(here)


def build(folder, target):
  return subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', str(target)],
    cwd=folder,
    env=os.environ | {'NO_MKDOCS_2_WARNING': '1'},
    capture_output=True,
    text=True,
  )


@pytest.fixture
def copy(tmp_path):
  pytest.importorskip('mkdocs', reason='needs the extra `docs`')
  for name in ('docs', 'notebooks', 'lambda_vit_jax'):
    skipped = shutil.ignore_patterns('__pycache__', '*.safetensors')
    shutil.copytree(ROOT / name, tmp_path / name, ignore=skipped)
  shutil.copy(ROOT / 'mkdocs.yml', tmp_path)
  return tmp_path


@pytest.mark.slow
def test_the_site_is_built_and_links_to_nothing_on_this_disk(copy):
  done = build(copy, copy / 'out')
  assert done.returncode == 0, done.stderr
  pages = list((copy / 'out').rglob('*.html'))
  assert len(pages) > len(list(DOCS.rglob('*.md'))) - 1
  for page in pages:
    text = page.read_text()
    # Sources are on the repository's host, not on the site's.
    assert not re.search(r'href="(?!https?:)[^"]*\.py["#]', text), page
    # Nothing of a page comes from another host.
    assert not re.search(r'<(?:script|img|link)[^>]+src="https?:', text), page
    assert 'fonts.googleapis.com' not in text


@pytest.mark.slow
@pytest.mark.parametrize(
  'link', ['method.md#no-such-heading', 'no_such_page.md'], ids=str
)
def test_a_dead_link_stops_the_build(link, copy):
  page = copy / 'docs' / 'README.md'
  page.write_text(f'{page.read_text()}\n[dead]({link})\n')
  done = build(copy, copy / 'out')
  assert done.returncode != 0
  assert link in done.stderr
