"""Fixtures of the tests of the report page."""

import pytest

from lambda_vit_jax.cli.report import plots


@pytest.fixture
def undrawn(monkeypatch):
  """Plots that cost no time, for tests of the rest of the page."""
  monkeypatch.setattr(plots, 'draw', lambda *_: '<svg viewBox="0 0 1 1"></svg>')
