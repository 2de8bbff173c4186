"""docs/reference agrees with the code, and its examples run."""

import doctest
import pathlib
import runpy

import pytest
from lambda_vit_jax.configs import common

import lambda_vit_jax
from lambda_vit_jax.cli import flags

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
MAKER = runpy.run_path(str(DOCS / 'make_reference.py'))
NAMES = [name for name in lambda_vit_jax.__all__ if name != '__version__']


@pytest.fixture(scope='module')
def texts():
  return MAKER['render']()


def test_the_pages_are_current(texts):
  here = {DOCS / 'reference.md', *(DOCS / 'reference').glob('*.md')}
  stale = [path.name for path in here if path.read_text() != texts.get(path)]
  assert (here == set(texts), stale) == (True, []), (
    'run `python docs/make_reference.py`'
  )


def test_every_config_key_has_a_meaning():
  keys = MAKER['flatten'](common.base().to_dict())
  meanings = MAKER['key_meanings']()
  without = [key for key in keys if not meanings.get(key)]
  assert not without, 'put a comment above these keys in configs/common.py'


def test_every_config_key_is_on_a_page(texts):
  pages = ''.join(texts.values())
  keys = MAKER['flatten'](common.base().to_dict())
  assert not [key for key in keys if f'\n| `{key}` |' not in pages]


@pytest.mark.parametrize('name', (*flags.STAGES, *flags.COMMANDS))
def test_stage_or_command_is_on_the_page(name):
  assert f'  {name} ' in (DOCS / 'reference.md').read_text()
  if name in flags.STAGES:
    assert (DOCS / 'reference' / f'{name}.md').exists()


def test_every_public_name_is_on_one_page():
  shown = [name for _, names in MAKER['THEMES'].values() for name in names]
  assert sorted(shown) == sorted(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_example_uses_its_name(name):
  """Classes are what a function before them returns."""
  example = MAKER['examples']()[name]
  assert '>>> ' in example
  assert f'lv.{name}' in example or name[0].isupper()


@pytest.mark.slow
def test_examples_run(tmp_path, monkeypatch):
  """One session, so that models are made and compiled once."""
  monkeypatch.chdir(tmp_path)
  # Nothing is sent anywhere, whoever runs this.
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  monkeypatch.setenv('HF_HOME', str(tmp_path / 'hub'))
  monkeypatch.delenv('HF_TOKEN', raising=False)
  options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
  failed, tried = doctest.testfile(
    str(MAKER['EXAMPLES']), module_relative=False, optionflags=options
  )
  assert tried > len(NAMES)
  assert not failed
