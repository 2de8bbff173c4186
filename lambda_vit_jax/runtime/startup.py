"""Set up the compilation cache and glibc's allocator before JAX starts.

JAX compiles every program anew in every process. The command line keeps
compiled programs on disk; the library by itself does not (set
`jax_compilation_cache_dir` for that).
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import mmap
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping

from lambda_vit_jax.core import processor
from lambda_vit_jax.core.errors import LambdaVitError, UsageError
from lambda_vit_jax.core.files import user_path

VARIABLE = 'LAMBDA_VIT_CACHE'
"""Environment variable: `off` for no cache, or the path of its folder."""

_OFF = ('off', 'no', 'none', '0', 'false')

# Programs that compile faster than this are not worth a file.
_LEAST_SECONDS = 0.2

# The oldest files are deleted above this size.
_MAX_BYTES = 1 << 30


def cache_folder(environment: Mapping[str, str]) -> pathlib.Path | None:
  """The folder of compiled programs, or None for no cache.

  `LAMBDA_VIT_CACHE`, else `lambda_vit_jax/compiled` in `XDG_CACHE_HOME` or
  `~/.cache`, with one folder for each kind of processor, because machines may
  share a home. If `JAX_COMPILATION_CACHE_DIR` is set, JAX uses that instead.
  """
  chosen = environment.get(VARIABLE, '')
  if chosen.lower() in _OFF or environment.get('JAX_COMPILATION_CACHE_DIR'):
    return None
  if chosen:
    return pathlib.Path(user_path(chosen))
  home = environment.get('XDG_CACHE_HOME') or '~/.cache'
  # A user may have no home.
  with contextlib.suppress(RuntimeError):
    folder = pathlib.Path(home).expanduser()
    return folder / 'lambda_vit_jax' / 'compiled' / _processor()
  return None


def _processor() -> str:
  """A short hash of the processor's features."""
  features = ' '.join(sorted(processor.instructions()))
  text = f'{platform.machine()} {platform.processor()} {features}'
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def use_cache() -> pathlib.Path | None:
  """Turns on the compilation cache if its folder is safe to use.

  Returns:
    The folder; None if the cache is off, cannot be written, or if other users
    may write there (its files are executed).
  """
  import jax

  folder = cache_folder(os.environ)
  if folder is None or jax.config.values['jax_compilation_cache_dir']:
    return None
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder):
      return None
    delete_oldest(folder, _MAX_BYTES)
  except OSError:
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update(
    'jax_persistent_cache_min_compile_time_secs', _LEAST_SECONDS
  )
  return folder


# A flag that every version has.
_COMMON_FLAG = 'xla_dump_to'


def check_devices() -> None:
  """Starts the devices that JAX is to use.

  Raises:
    LambdaVitError: the platform asked for is not there.
    UsageError: `XLA_FLAGS` has a flag that XLA does not know.
  """
  import jax

  check_xla_flags(os.environ.get('XLA_FLAGS', ''))
  try:
    jax.local_devices()
  except Exception as error:
    # Plug-ins raise many kinds, some of them without a text.
    platforms = jax.config.values['jax_platforms']
    reason = ' '.join(str(error).split())[:120] or type(error).__name__
    raise LambdaVitError(
      f'JAX_PLATFORMS={platforms or ""}: JAX cannot start its devices '
      f"({reason}); install the platform's plugin, such as jax[cuda12], or "
      'unset the variable'
    ) from error


@functools.cache
def check_xla_flags(flags: str) -> None:
  """Looks for unknown flags, at which XLA would end the process.

  Args:
    flags: as in `XLA_FLAGS`; the name of a file of flags is passed over.

  Raises:
    UsageError: an unknown flag.
  """
  given = [flag for flag in flags.split() if flag.startswith('--')]
  names = tuple(flag.lstrip('-').partition('=')[0] for flag in given)
  # Should another version keep its names elsewhere, none is known.
  known = known_flags((_COMMON_FLAG, *names)) if given else ()
  if _COMMON_FLAG not in known:
    return
  for flag, name in zip(given, names, strict=True):
    if name not in known:
      raise UsageError(
        f'XLA_FLAGS: XLA has no flag {flag}; take it out, or correct it'
      )


def known_flags(names: tuple[str, ...]) -> tuple[str, ...]:
  """Those of some names that are flags of XLA.

  It does not say which it knows; their names are texts in its library.
  """
  import jaxlib

  libraries = list(pathlib.Path(jaxlib.__file__).parent.glob('*.so'))
  if not libraries:
    return ()
  library = max(libraries, key=lambda path: path.stat().st_size)
  with (
    library.open('rb') as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
  ):
    return tuple(n for n in names if content.find(n.encode() + b'\0') >= 0)


def _is_private(folder: pathlib.Path) -> bool:
  """Whether only this user may write to the folder."""
  if not os.access(folder, os.W_OK | os.X_OK):
    return False
  if not hasattr(os, 'getuid'):
    return True
  status = folder.stat()
  return status.st_uid == os.getuid() and not status.st_mode & 0o022


# How JAX names what it writes there.
_COMPILED = ('-cache', '-atime')


def delete_oldest(folder: pathlib.Path, max_bytes: int) -> None:
  """Removes the oldest compiled programs until `max_bytes` of them are left.

  Other files in the folder are not touched: it may be one that the user chose.
  """
  files = []
  for path in folder.iterdir():
    if not path.name.endswith(_COMPILED):
      continue
    # Another process may delete files at the same time.
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
  """Makes glibc keep freed memory for the next call of a program.

  XLA allocates a program's temporary memory in each call. On a CPU, glibc
  returns blocks of this size to the system, which has to clear every page when
  it is used again: a sixth of a training step of DeiT-T. Call it before JAX
  starts, since only threads that start later are affected.

  Returns:
    Whether anything was changed: not with another C library, nor if an
    accelerator's plug-in is installed (the host's threads that read images are
    faster with their own arenas).
  """
  if platform.libc_ver()[0] != 'glibc' or _accelerator_installed():
    return False
  tune = ctypes.CDLL(None).mallopt
  # The last one leaves threads no arena of their own: only with the others.
  return bool(
    tune(_M_TRIM_THRESHOLD, 2**31 - 1)
    and tune(_M_MMAP_MAX, 0)
    and tune(_M_ARENA_MAX, 1)
  )


def _accelerator_installed() -> bool:
  return bool(importlib.metadata.entry_points(group='jax_plugins')) or any(
    importlib.util.find_spec(name) for name in ('jax_plugins', 'libtpu')
  )


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
  """Compiles in full while open, to measure how long that takes."""
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
