"""What commands settle before JAX starts: the cache; stages, memory as well.

JAX compiles every program anew in every process. The command line keeps what
it compiled; the library alone does not (set `jax_compilation_cache_dir`).
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping

VARIABLE = 'LAMBDA_VIT_CACHE'
"""`off` keeps nothing; a path keeps it there."""

_OFF = ('off', 'no', 'none', '0', 'false')

# Programs that compile faster than this are not worth a file.
_LEAST_SECONDS = 0.2

# The oldest files go when there is more than this.
_MAX_BYTES = 1 << 30


def cache_folder(environment: Mapping[str, str]) -> pathlib.Path | None:
  """Where compiled programs are to be kept, or None.

  `LAMBDA_VIT_CACHE`, else `lambda_vit_jax/compiled` in `XDG_CACHE_HOME` or
  `~/.cache`; a folder of its own for every kind of processor, because a home
  may be shared by several. `JAX_COMPILATION_CACHE_DIR` is JAX's own choice,
  which is left alone.
  """
  chosen = environment.get(VARIABLE, '')
  if chosen.lower() in _OFF or environment.get('JAX_COMPILATION_CACHE_DIR'):
    return None
  if chosen:
    return pathlib.Path(chosen).expanduser()
  home = environment.get('XDG_CACHE_HOME') or '~/.cache'
  try:
    folder = pathlib.Path(home).expanduser()
  except RuntimeError:
    # A user without a home.
    return None
  return folder / 'lambda_vit_jax' / 'compiled' / _processor()


def _processor() -> str:
  """A short name for what the processor can do."""
  text = f'{platform.machine()} {platform.processor()}'
  with contextlib.suppress(OSError):
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    text += next((s for s in lines if s.startswith(('flags', 'Feat'))), '')
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def use_cache() -> pathlib.Path | None:
  """Has JAX keep its programs, where the folder is safe to use.

  Returns:
    The folder; None where the cache is off, cannot be written, or is not the
    user's alone (what lies there is run).
  """
  import jax

  folder = cache_folder(os.environ)
  if folder is None or jax.config.values['jax_compilation_cache_dir']:
    return None
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder):
      return None
    prune(folder, _MAX_BYTES)
  except OSError:
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update(
    'jax_persistent_cache_min_compile_time_secs', _LEAST_SECONDS
  )
  return folder


def _is_private(folder: pathlib.Path) -> bool:
  """Whether the user, and nobody else, may write there."""
  if not os.access(folder, os.W_OK | os.X_OK):
    return False
  if not hasattr(os, 'getuid'):
    return True
  status = folder.stat()
  return status.st_uid == os.getuid() and not status.st_mode & 0o022


def prune(folder: pathlib.Path, max_bytes: int) -> None:
  """Removes the oldest files until `max_bytes` are left."""
  files = []
  for path in folder.iterdir():
    # Another process may prune at the same time.
    with contextlib.suppress(FileNotFoundError):
      status = path.stat(follow_symlinks=False)
      files.append((status.st_mtime, status.st_size, path))
  total = sum(size for _, size, _ in files)
  for _, size, path in sorted(files):
    if total <= max_bytes:
      return
    with contextlib.suppress(OSError):
      path.unlink()
    total -= size


# Parameters of `mallopt`, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
  """Has the C library keep what a program frees, for the next call.

  XLA takes a program's temporary memory anew in each call. On a CPU, glibc
  returns such sizes to the system, which clears every page once more when it
  is touched: a sixth of a training step of DeiT-T. To be called before JAX
  starts, since only threads that begin later heed it.

  Returns:
    Whether anything was changed: not where another C library is in use, nor
    where an accelerator's plug-in is installed (its host's threads that read
    images are better off with memory of their own).
  """
  if platform.libc_ver()[0] != 'glibc' or _accelerator_installed():
    return False
  tune = ctypes.CDLL(None).mallopt
  # The last one costs threads their own arenas: only if the others worked.
  settings = (
    (_M_TRIM_THRESHOLD, 2**31 - 1),
    (_M_MMAP_MAX, 0),
    (_M_ARENA_MAX, 1),
  )
  return all(tune(name, value) for name, value in settings)


def _accelerator_installed() -> bool:
  return bool(importlib.metadata.entry_points(group='jax_plugins')) or any(
    importlib.util.find_spec(name) for name in ('jax_plugins', 'libtpu')
  )


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
  """Programs compile in full, for whoever measures how long that takes."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  before = jax.config.values['jax_enable_compilation_cache']
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()
