"""docs/reference.md is what the code says now."""

import pathlib
import runpy

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


def test_every_stage_command_and_name_is_there():
  page = MAKER['render']()
  for name in (*flags.STAGES, *flags.COMMANDS):
    assert f'  {name} ' in page
  for name in lambda_vit_jax.__all__:
    if name != '__version__':
      assert f'### `lv.{name}`' in page
