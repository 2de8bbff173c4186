"""A fast start: what is imported, and where compiled programs are kept."""

import os
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.runtime import startup

# Slow to import, and needed by training or by one kind of data alone.
_TRAINING = {
  'grain',
  'lambda_vit_jax.data.pipeline',
  'lambda_vit_jax.cli.stages.registry',
  'matplotlib',
  'optax',
  'sklearn',
  'tensorflow',
  'tensorflow_datasets',
  'torch',
}


def imported(code: str, **environment: str) -> set[str]:
  """The modules that a fresh interpreter has after `code`."""
  code += '\nimport sys; print("\\n" + "\\n".join(sys.modules))'
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | environment,
  )
  return set(done.stdout.splitlines())


def test_help_of_every_kind_imports_nothing_heavy():
  found = imported(
    'from lambda_vit_jax.main import main\n'
    'for argv in (["--help"], ["select", "--help"], ["predict", "-h"],\n'
    '    ["selct"], ["select", "--wrong"]): main(argv)'
  )
  assert not found & (_TRAINING | {'jax', 'numpy', 'flax', 'orbax', 'rich'})


def test_models_imports_neither_orbax_nor_data():
  found = imported('from lambda_vit_jax.main import main\nmain(["models"])')
  unwanted = {'orbax.checkpoint', 'PIL.Image', 'safetensors'}
  assert not found & (_TRAINING | unwanted)


def test_the_loader_and_predict_import_no_training():
  found = imported(
    'import lambda_vit_jax.cli.commands, lambda_vit_jax.checkpoints.load\n'
    'import lambda_vit_jax.data.transforms'
  )
  # Orbax comes with the first folder that is restored.
  assert not found & (_TRAINING | {'orbax.checkpoint'})


def test_the_package_alone_imports_nothing():
  assert not imported('import lambda_vit_jax') & {'jax', 'numpy', 'flax'}


# --- where ---


@pytest.mark.parametrize(
  'environment, expected',
  [
    ({'LAMBDA_VIT_CACHE': 'off'}, None),
    ({'LAMBDA_VIT_CACHE': 'OFF', 'XDG_CACHE_HOME': '/c'}, None),
    ({'LAMBDA_VIT_CACHE': '0'}, None),
    ({'JAX_COMPILATION_CACHE_DIR': '/jax'}, None),
    ({'JAX_COMPILATION_CACHE_DIR': '/jax', 'XDG_CACHE_HOME': '/c'}, None),
    ({'LAMBDA_VIT_CACHE': '/mine', 'XDG_CACHE_HOME': '/c'}, '/mine'),
    ({'XDG_CACHE_HOME': '/c'}, '/c/lambda_vit_jax/compiled'),
    ({}, str(pathlib.Path.home() / '.cache/lambda_vit_jax/compiled')),
  ],
)
def test_the_environment_says_where(environment, expected):
  folder = startup.cache_folder(environment)
  if expected is None:
    assert folder is None
  else:
    assert str(folder).startswith(expected)


@pytest.fixture
def unset(monkeypatch):
  """As in a process that has no cache yet; set back afterwards."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  yield monkeypatch
  for name, value in before.items():
    jax.config.update(name, value)


def test_the_folder_is_made_for_the_user_alone(unset, tmp_path):
  unset.delenv('LAMBDA_VIT_CACHE', raising=False)
  unset.setenv('XDG_CACHE_HOME', str(tmp_path))
  folder = startup.use_cache()
  assert folder.is_relative_to(tmp_path)
  assert folder.stat().st_mode & 0o777 == 0o700
  assert jax.config.jax_compilation_cache_dir == str(folder)


def test_an_unusable_folder_is_left_alone(unset, tmp_path):
  blocked = tmp_path / 'file'
  blocked.write_text('')
  unset.setenv('LAMBDA_VIT_CACHE', str(blocked / 'below'))
  assert startup.use_cache() is None
  # What lies there is run: nobody else may write it.
  shared = tmp_path / 'shared'
  shared.mkdir()
  shared.chmod(0o777)
  unset.setenv('LAMBDA_VIT_CACHE', str(shared))
  assert startup.use_cache() is None
  unset.setenv('LAMBDA_VIT_CACHE', 'off')
  assert startup.use_cache() is None
  assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_somebody_chose_stays(tmp_path, monkeypatch):
  chosen = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv('LAMBDA_VIT_CACHE', str(tmp_path))
  assert startup.use_cache() is None
  assert jax.config.jax_compilation_cache_dir == chosen


def test_the_oldest_programs_go_first_and_other_files_stay(tmp_path):
  names = ['thesis.tar', *(f'jit_{index}-cache' for index in range(5))]
  for index, name in enumerate(names):
    path = tmp_path / name
    path.write_bytes(bytes(100))
    os.utime(path, (index, index))
  for _ in range(2):
    startup.delete_oldest(tmp_path, 250)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ['jit_3-cache', 'jit_4-cache', 'thesis.tar']


def test_programs_are_the_same_with_and_without_the_cache():
  def double(x):
    return 2.0 * x + 1.0

  x = np.ones(3, np.float32)
  with startup.without_cache():
    assert not jax.config.jax_enable_compilation_cache
    first = jax.jit(double).lower(x).compile()(x)
  assert jax.config.jax_enable_compilation_cache
  np.testing.assert_array_equal(first, jax.jit(double)(x))


_FAULTS = """
import resource
from lambda_vit_jax.runtime import startup
print(startup.keep_memory() if {keep} else None)
import jax, jax.numpy as jnp

@jax.jit
def program(x):
  # Two temporary arrays of 64 MiB, and a number as the result.
  wide = jnp.sin(x[:, None] * jnp.arange(4096.0))
  return (wide @ wide.T).max()

x = jnp.ones(4096)
for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  program(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc' or startup._accelerator_installed(),
  reason='memory is kept by glibc, and beside no accelerator',
)
def test_memory_that_a_call_frees_serves_the_next_one():
  def faults(keep):
    done = subprocess.run(
      [sys.executable, '-c', _FAULTS.format(keep=keep)],
      capture_output=True,
      text=True,
      check=True,
    )
    kept, count = done.stdout.split()
    assert kept == str(keep or None)
    return int(count)

  # A hundred MiB and more in pages of 4 KiB, or of 2 MiB, against next to none.
  assert faults(keep=True) <= max(5, 0.1 * faults(keep=False))


@pytest.mark.parametrize(
  'flags', ['', '--xla_dump_to=x', '--xla_cpu_enable_fast_math', 'flags.txt']
)
def test_flags_that_xla_knows(flags):
  startup.check_xla_flags(flags)


def test_a_flag_at_which_xla_would_end_the_process():
  with pytest.raises(UsageError, match='XLA has no flag --foo'):
    startup.check_xla_flags('--xla_dump_to=x --foo=1')
