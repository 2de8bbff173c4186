"""The wheel builds and works outside of the repository."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def call(*words, cwd, **environment):
  done = subprocess.run(
    [str(word) for word in words],
    capture_output=True,
    text=True,
    cwd=cwd,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """A wheel built from a source archive of a copy of the tree."""
  copy = tmp_path_factory.mktemp('source') / 'tree'
  skipped = shutil.ignore_patterns('.*', '__pycache__', 'runs', '*.egg-info')
  shutil.copytree(ROOT, copy, ignore=skipped)
  call(sys.executable, '-m', 'build', '--no-isolation', cwd=copy)
  assert list((copy / 'dist').glob('*.tar.gz'))
  (found,) = (copy / 'dist').glob('*.whl')
  return found


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """A folder with only the package; its dependencies are installed."""
  target = tmp_path_factory.mktemp('site')
  install = (sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index')
  call(*install, '--no-deps', '--target', target, wheel, cwd=target)
  return target


@pytest.fixture
def run(installed, tmp_path):
  """Run the installed console script in an empty folder."""

  def lambda_vit(*words):
    script = (sys.executable, installed / 'bin' / 'lambda-vit')
    return call(*script, *words, cwd=tmp_path, PYTHONPATH=str(installed))

  return lambda_vit


def test_it_is_the_installed_package_that_runs(installed, tmp_path):
  code = 'import lambda_vit_jax; print(lambda_vit_jax.__file__)'
  path = call(
    sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(installed)
  )
  assert pathlib.Path(path.strip()).is_relative_to(installed)


def test_help(run):
  assert 'usage: lambda-vit' in run('--help')


def test_every_config_is_in_the_wheel(installed):
  there = {
    path.name for path in (installed / 'lambda_vit_jax/configs').iterdir()
  }
  assert {path.name for path in (ROOT / 'configs').glob('*.py')} <= there


@pytest.mark.parametrize('where', ['name', 'path', 'own'])
def test_configs_of_the_package_and_of_a_user(where, run, installed, tmp_path):
  config = {
    'name': 'configs/digits.py:runlocal',
    'path': f'{installed}/lambda_vit_jax/configs/digits.py:runlocal',
    'own': 'own.py',
  }[where]
  (tmp_path / 'own.py').write_text(
    'from lambda_vit_jax.configs import digits\n\n\n'
    'def get_config(argument=None):\n'
    "  return digits.get_config('runlocal')\n"
  )
  run('pretrain', f'--config={config}', '--workdir=run')
  # The weights are those in the wheel.
  assert (tmp_path / 'run' / 'checkpoints' / 'pretrain' / '0').is_dir()
