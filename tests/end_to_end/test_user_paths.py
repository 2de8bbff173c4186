"""`~` is the home folder in every function and flag that takes a path.

A program that expands it in some places only makes a folder named `~`, or does
not find what another part has written.
"""

import inspect
import json
import os
import pathlib
import re
import sys
from unittest import mock

import pytest
from PIL import Image

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.cli.flags import find_config
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.files import absolute, user_path
from lambda_vit_jax.data import check
from lambda_vit_jax.data.sources import registry
from lambda_vit_jax.main import main
from lambda_vit_jax.runtime import startup
from lambda_vit_jax.training import persistence

PACKAGE = pathlib.Path(lv.__file__).parent


@pytest.fixture(scope='module')
def model():
  return lv.create_model('vit_nano_patch2_8', seed=3)


@pytest.fixture
def home(tmp_path, monkeypatch):
  """An empty home folder; the current folder is another one."""
  home = tmp_path / 'home'
  home.mkdir()
  here = tmp_path / 'here'
  here.mkdir()
  monkeypatch.setenv('HOME', str(home))
  monkeypatch.chdir(here)
  yield home
  # Nothing was written beside, least of all into a folder named `~`.
  assert not list(here.iterdir())


def exported(home, model):
  return lv.export(model, home / 'out', formats=('safetensors',))


def images(home, kind):
  """`train/` and `test/` of two classes, or of images and masks."""
  for split in ('train', 'test'):
    for name in ('a', 'b') if kind == 'image' else ('images', 'masks'):
      folder = home / 'data' / split / name
      folder.mkdir(parents=True)
      Image.new('L', (8, 8)).save(folder / 'x.png')


def _export(home, model):
  lv.export(model, '~/out', formats=('safetensors',))
  assert (home / 'out' / 'model.json').exists()


def _load_pretrained(home, model):
  exported(home, model)
  assert lv.load_pretrained('~/out').variant == model.variant
  path = '~/out/model.safetensors'
  assert lv.load_pretrained(path).variant == model.variant


def _load_export(home, model):
  exported(home, model)
  assert lv.load_export(pathlib.Path('~/out')).variant == model.variant


def _load_selection(home, model):
  found = lv.load_selection('vit_small_patch14_dinov2', num_layers=2)
  (home / 'selection.json').write_text(json.dumps(found.to_json()))
  assert lv.load_selection('~') == found
  assert lv.load_selection('~/selection.json') == found


def _image_batches(home, model):
  images(home, 'image')
  assert sum(map(len, lv.image_batches('~/data', model))) == 4


def _preprocess(home, model):
  images(home, 'image')
  assert lv.preprocess('~/data/train/a/x.png', model).shape == (1, 8, 8, 1)


def _push_to_hub(home, model):
  # Without the package nothing is uploaded.
  with mock.patch.dict(sys.modules, {'huggingface_hub': None}):
    lv.push_to_hub(model, 'owner/name', '~/out', formats=('safetensors',))
  assert (home / 'out' / 'model.json').exists()


FUNCTIONS = {
  'export': _export,
  'push_to_hub': _push_to_hub,
  'load_pretrained': _load_pretrained,
  'load_export': _load_export,
  'load_selection': _load_selection,
  'image_batches': _image_batches,
  # Takes arrays as well, so that its signature says `Any`.
  'preprocess': _preprocess,
}


def test_every_public_function_with_a_path_has_a_case():
  taking = {
    name
    for name in lv.__all__
    if inspect.isfunction(getattr(lv, name))
    and 'PathLike' in str(inspect.signature(getattr(lv, name)))
  }
  assert taking == set(FUNCTIONS) - {'preprocess'}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_functions(name, home, model):
  FUNCTIONS[name](home, model)


def _config(home, model):
  (home / 'mine.py').write_text('')
  assert find_config('~/mine.py:3') == f'{home}/mine.py:3'


def _workdir(home, model):
  # `Run` opens it with this.
  assert absolute('~/run') == absolute(home / 'run')


def _resume_from(home, model):
  checkpointer = orbax_store.Checkpointer(home / 'run/checkpoints/pretrain')
  checkpointer.save(3, {'params': model.params}, {'model': describe(model)})
  checkpointer.close()
  assert persistence.find('~/run', 'pretrain').step == 3


def _image_folder(home, model):
  images(home, 'image')
  assert len(registry.open_dataset('image_folder:~/data').train) == 2


def _mask_folder(home, model):
  images(home, 'mask')
  found = registry.open_masks('segmentation_folder:~/data', 2)
  assert len(found.train) == 1


def _check_data(home, model):
  images(home, 'image')
  assert check.check_data('image_folder:~/data').class_names == ('a', 'b')


def _idx_folder(home, model):
  with pytest.raises(Exception, match=f'{home}/data is not a folder'):
    registry.open_dataset('idx_folder:~/data')


def _cache_dir(home, model):
  registry.open_dataset('digits', '~/cache')
  assert (home / 'cache' / 'digits').exists()


def _compilation_cache(home, model):
  assert startup.cache_folder({startup.VARIABLE: '~/c'}) == home / 'c'


def _predict(home, model):
  exported(home, model)
  Image.new('L', (8, 8)).save(home / 'x.png')
  assert main(['predict', '--model=~/out', '~/x.png']) == 0


FLAGS = {
  '--config': _config,
  '--workdir': _workdir,
  '--config.resume_from': _resume_from,
  '--config.data.source=image_folder': _image_folder,
  '--config.data.source=idx_folder': _idx_folder,
  '--config.data.source=segmentation_folder': _mask_folder,
  '--config.data.cache_dir': _cache_dir,
  'check-data': _check_data,
  'predict': _predict,
  'LAMBDA_VIT_CACHE': _compilation_cache,
}
"""`--config.init` is given to `load_pretrained`."""


@pytest.mark.parametrize('name', FLAGS)
def test_flags(name, home, model):
  FLAGS[name](home, model)


def test_one_function_expands():
  places = [
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob('*.py')
    if re.search(r'expanduser\(', path.read_text())
  ]
  # The compilation cache's default is used only where there is a home.
  assert sorted(places) == ['core/files.py', 'runtime/startup.py']


def test_an_unknown_home_is_one_line():
  with pytest.raises(UsageError, match='give the whole path'):
    user_path('~nobody-has-this-name/x')


@pytest.mark.parametrize('path', ['gs://bucket/~x', '/a/~/b', 'a/~'])
def test_other_tildes_stay(path):
  assert os.fspath(user_path(path)) == path
