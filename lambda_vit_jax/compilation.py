"""How programs are compiled for the machine at hand: the one place that picks.

On a CPU, XLA hands products of floats to YNNPACK. Told not to, it takes
Eigen's loops around oneDNN's kernels, which on x86 are faster by a quarter to
a half; reductions stay with YNNPACK, and with them a softmax and the products
on both its sides, which it fuses into one pass (`benchmarks/products.py`).

Two things Eigen does badly. A matrix whose rows are a multiple of 4 KiB long
is slow, as the rows of a tile then share their places in the cache: such a
product is taken in pieces (`column_pieces`). Products of integers are slower
by much: a program that reads int8 is left to XLA's own choice.
"""

import contextlib
import contextvars
import functools
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

_X86 = ('x86_64', 'amd64')

_FLAG = 'xla_cpu_experimental_ynn_fusion_type'
_CPU_OPTIONS = {_FLAG: 'LIBRARY_FUSION_TYPE_REDUCE'}

# A row of such a length starts where the row before did, in the cache.
_ALIASING_BYTES = 4096
_MOST_COLUMNS = 384

# For fewer rows, copying a piece of the matrix costs more than it gains.
_LEAST_ROWS = 64

_portable = contextvars.ContextVar('portable', default=False)


@functools.cache
def compiler_options() -> dict[str, str]:
  """What XLA is told on the default backend; empty where it knows best.

  A flag is experimental: a compiler that does not know it any more is left
  alone, and so is a user who sets it in `XLA_FLAGS`.
  """
  if (
    jax.default_backend() != 'cpu'
    or platform.machine().lower() not in _X86
    or _FLAG in os.environ.get('XLA_FLAGS', '')
  ):
    return {}
  try:
    jax.jit(jnp.negative, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
  except Exception:
    # Its type is not part of JAX's interface, and nothing else can fail here.
    return {}
  return dict(_CPU_OPTIONS)


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """Programs traced within are for any machine, not for this one."""
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)


def column_pieces(rows: int, columns: int, dtype: Any) -> int:
  """Into how many equal pieces a product's columns are best cut; 1 for none.

  Args:
    rows: of the left factor.
    columns: of the right factor, a row-major matrix.
    dtype: of both.
  """
  row_bytes = columns * jnp.dtype(dtype).itemsize
  if _portable.get() or row_bytes % _ALIASING_BYTES or rows < _LEAST_ROWS:
    return 1
  if not compiler_options():
    return 1
  least = -(-columns // _MOST_COLUMNS)
  return next(n for n in range(least, columns + 1) if columns % n == 0)


class Program:
  """`jax.jit` with `compiler_options`, for programs with large products.

  Within another program (a caller's `jax.jit`, `jax.grad`, `jax.vmap`) it is
  `jax.jit` alone, as options are the outermost program's affair.
  """

  def __init__(self, function: Callable[..., Any], **options: Any) -> None:
    functools.update_wrapper(self, function)
    self._function = function
    self._options = options
    self._plain = jax.jit(function, **options)

  @functools.cached_property
  def _tuned(self) -> Any:
    options = compiler_options()
    if not options:
      return self._plain
    return jax.jit(self._function, compiler_options=options, **self._options)

  def _chosen(self, arguments: Any) -> Any:
    leaves = jax.tree.leaves(arguments)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
      return self._plain
    if any(getattr(leaf, 'dtype', None) == jnp.int8 for leaf in leaves):
      return self._plain
    # With nothing but constants as arguments, a trace shows in what it makes.
    within = isinstance(jnp.zeros(()), jax.core.Tracer)
    return self._plain if within else self._tuned

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self._chosen((args, kwargs))(*args, **kwargs)

  def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
    """As `jax.jit(function).lower`."""
    return self._chosen((args, kwargs)).lower(*args, **kwargs)

  def cache_size(self) -> int:
    """How many programs have been compiled by calls."""
    jitted: dict[int, Any] = {id(f): f for f in (self._plain, self._tuned)}
    return sum(f._cache_size() for f in jitted.values())


def jit(**options: Any) -> Callable[[Callable[..., Any]], Program]:
  """A decorator that makes a `Program`; options are those of `jax.jit`."""
  return lambda function: Program(function, **options)
