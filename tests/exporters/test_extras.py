"""Packages that are optional: not there, or not fit for what is."""

import sys

import pytest

from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.exporters import extras


def test_a_package_that_is_not_there_names_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'timm', None)
  with pytest.raises(
    LambdaVitError, match=r'needs the package timm; .*\[timm\]'
  ):
    extras.import_extra('timm', 'runtime torch')


@pytest.mark.parametrize(
  'content, reason',
  [
    ('import missing_part', "No module named 'missing_part'"),
    (
      "raise RuntimeError('operator\\nnms does not exist')",
      'operator nms does',
    ),
  ],
)
def test_a_package_that_does_not_fit_is_said(
  content, reason, tmp_path, monkeypatch
):
  """It is there, so that "install it" would help nobody."""
  (tmp_path / 'timm.py').write_text(content)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'timm', raising=False)
  with pytest.raises(LambdaVitError) as raised:
    extras.import_extra('timm', 'runtime torch')
  line = str(raised.value)
  assert line.startswith('runtime torch: the package timm is installed and')
  assert reason in line
  assert '\n' not in line
