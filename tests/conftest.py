"""Settings of every test: 8 virtual CPU devices, strict type promotion."""

import gc
import os
import pathlib
from collections.abc import Iterator

from tests.support import xla_flags

# Two workers share the cores: threads of BLAS would wait for each other, which
# takes up to ten times as long.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
# Set before JAX starts its backend; child processes inherit them.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [xla_flags.flags(devices=8), os.environ.get('XLA_FLAGS', '')]
).strip()

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_threefry_partitionable', True)
# Compilation is most of the suite's time: cache programs across tests and runs.
_CACHE = pathlib.Path(__file__).parents[1] / '.pytest_cache' / 'jax'
jax.config.update('jax_compilation_cache_dir', str(_CACHE))
# The same for child processes.
os.environ.setdefault('LAMBDA_VIT_CACHE', str(_CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)

# No deadline: the first example of a property may compile. Derandomized: the
# same examples on every run.
hypothesis.settings.register_profile('law', deadline=None, derandomize=True)
hypothesis.settings.load_profile('law')


def pytest_collection_finish() -> None:
  """Spares the garbage collector what lives as long as the tests do.

  JAX and compiled programs are millions of objects; walking them took a tenth of
  the suite's time.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)


# Linux gives a process 65,530 memory maps. XLA takes some for each compiled
# program, and crashes when there are no more. So many of them come with 4 GB.
_MOST_MAPS = 12_000
_MAPS = pathlib.Path('/proc/self/maps')


@pytest.fixture(autouse=True, scope='module')
def _few_memory_maps() -> Iterator[None]:
  """Frees the programs of earlier tests before memory maps run out."""
  yield
  if not _MAPS.exists():
    return
  with _MAPS.open('rb') as lines:
    count = sum(1 for _ in lines)
  if count > _MOST_MAPS:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _patient_with_signals(monkeypatch) -> None:
  """A test that signals itself must not end the process that runs it.

  A command that does not look at its signal within seconds is ended from a
  thread, and one pass of the garbage collector over thousands of tests' objects
  may take as long. What ends so is tested in processes of its own.
  """
  from lambda_vit_jax.runtime import interrupts

  monkeypatch.setattr(interrupts, '_PIECE_SECONDS', 600.0)
  monkeypatch.setattr(interrupts, '_LEAVING_SECONDS', 600.0)


@pytest.fixture
def rng() -> np.random.Generator:
  return np.random.default_rng(0)


@pytest.fixture
def cutting(monkeypatch) -> None:
  """Lets programs cut small products too, which one device alone does."""
  from lambda_vit_jax.runtime import compilation

  if not compilation.compiler_options():
    pytest.skip('this processor or compiler has no options to test')
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  monkeypatch.setattr(compilation, '_LEAST_WIDTH', 1)


@pytest.fixture(scope='session')
def tiny_variant():
  """Depth 3, width 24, 8-pixel grey images: compiles in a second."""
  from lambda_vit_jax.models.variants import Variant

  return Variant(
    'tiny',
    image_size=8,
    patch_size=2,
    embed_dim=24,
    depth=3,
    num_heads=2,
    num_classes=10,
    mean=(0.5,),
    std=(0.5,),
  )


@pytest.fixture
def images(rng) -> np.ndarray:
  """Four normalised grey images, `[4, 8, 8, 1]`."""
  return rng.normal(size=(4, 8, 8, 1)).astype(np.float32)


@pytest.fixture
def compilations():
  """A function that returns the number of programs compiled so far."""
  count = [0]

  def listen(event, seconds, **_):
    count[0] += event.endswith('backend_compile_duration')

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield lambda: count[0]
  jax.monitoring.unregister_event_duration_listener(listen)
