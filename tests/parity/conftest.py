"""Collect the parity tests only if the extra `[parity]` is installed."""

import importlib.util

if importlib.util.find_spec('timm') is None:
  collect_ignore_glob = ['test_*.py']
