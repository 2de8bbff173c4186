"""docs/reference.md agrees with the code."""

import pathlib
import runpy

import pytest
from lambda_vit_jax.configs import common

import lambda_vit_jax
from lambda_vit_jax.cli import flags

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
MAKER = runpy.run_path(str(DOCS / 'make_reference.py'))


def test_the_page_is_current():
  assert (DOCS / 'reference.md').read_text() == MAKER['render'](), (
    'run `python docs/make_reference.py`'
  )


def test_every_config_key_has_a_meaning():
  keys = MAKER['flatten'](common.base().to_dict())
  meanings = MAKER['key_meanings']()
  without = [key for key in keys if not meanings.get(key)]
  assert not without, 'put a comment above these keys in configs/common.py'


@pytest.mark.parametrize('name', (*flags.STAGES, *flags.COMMANDS))
def test_stage_or_command_is_on_the_page(name):
  assert f'  {name} ' in (DOCS / 'reference.md').read_text()


@pytest.mark.parametrize(
  'name', [name for name in lambda_vit_jax.__all__ if name != '__version__']
)
def test_public_name_is_on_the_page(name):
  assert f'### `lv.{name}`' in (DOCS / 'reference.md').read_text()
