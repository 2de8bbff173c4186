"""Everything is declared in pyproject.toml."""

import setuptools

setuptools.setup()
