"""A hook of MkDocs: links out of docs/ lead to the repository on the site.

Pages link to files as GitHub shows them: `../lambda_vit_jax/models/vit.py`. The
site has only the pages, so there such a link leads to `extra.repository`. That a
file exists is checked by tests/docs/test_docs.py.
"""

import pathlib
import posixpath
import re
from typing import Any

_LINK = re.compile(r'(\]\()([^)#\s]+)([)#])')


def _leaves(target: str, page: str) -> str:
  """Return the path in the repository if a link leaves docs/, else ''."""
  if re.match(r'[a-z]+:|/', target):
    return ''
  path = posixpath.normpath(
    posixpath.join('docs', posixpath.dirname(page), target)
  )
  folder = pathlib.Path(__file__).parents[1] / path
  # The site shows no sources and no folders, not even those of docs/.
  inside = path.startswith('docs/') and not path.endswith('.py')
  return '' if inside and not folder.is_dir() else path


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
  """Return the page with links to files outside of the site."""
  del files
  base = config['extra']['repository'].rstrip('/') + '/blob/main/'

  def replace(match: re.Match[str]) -> str:
    path = _leaves(match[2], page.file.src_uri)
    return f'{match[1]}{base}{path}{match[3]}' if path else match[0]

  return _LINK.sub(replace, markdown)
