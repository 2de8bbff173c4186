"""Parity with other programs: collected where the [parity] extra is there."""

import importlib.util

if importlib.util.find_spec('timm') is None:
  collect_ignore_glob = ['test_*.py']
