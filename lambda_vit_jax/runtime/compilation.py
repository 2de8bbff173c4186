"""Compile programs with the XLA options that are fastest on this machine.

By default, XLA on a CPU computes products of floats with YNNPACK. With the
options below it uses Eigen's loops around oneDNN's kernels instead, which on x86
are faster by a quarter to a half. Reductions stay with YNNPACK, and so do a
softmax and the products before and after it, which YNNPACK fuses into one pass
(`benchmarks/products.py`).

Small networks gain nothing from the options, and on digits lose up to a quarter
(`benchmarks/compiler_options.py`): a program is compiled with them if one of its
arguments, such as a weight, is at least 256 wide both ways (`options_for`).

Eigen is slow in three more cases. If the rows of a matrix are a multiple of 4 KiB
long, the rows of a tile compete for the same cache lines: such a product is
split into pieces (`column_pieces`). If rows are longer than a page of memory,
each row of a tile is on another page, in the product's output as well: q, k and
v are then three products, and an MLP sums over pieces of its hidden layer
(`long_rows`, `hidden_pieces`). Products of integers are much slower: a program
that reads int8 is compiled without these options.
"""

import contextvars
import functools
import os
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_X86 = ('x86_64', 'amd64')

_FLAG = 'xla_cpu_experimental_ynn_fusion_type'
_CPU_OPTIONS = {_FLAG: 'LIBRARY_FUSION_TYPE_REDUCE'}

# Rows of this length all start at the same place of the cache.
_ALIASING_BYTES = 4096
_MOST_COLUMNS = 384
_LEAST_COLUMNS = 128

# For fewer rows, copying a piece of the matrix costs more than it gains.
_LEAST_ROWS = 64

_PAGE_BYTES = 4096
_LEAST_ROWS_TO_PART = 1024

# Of both last axes of an argument.
_LEAST_WIDTH = 256

_INT8 = np.dtype(np.int8)

# Whether the program being traced will be compiled with the options.
_tuning = contextvars.ContextVar('tuning', default=False)


def compiler_options() -> dict[str, str]:
  """Options for XLA on the default backend; empty to use its defaults.

  The flag is experimental: nothing is set if the compiler does not know it any
  more, or if the user sets it in `XLA_FLAGS`.
  """
  return dict(_CPU_OPTIONS) if _has_options() else {}


def options_for(arguments: Any) -> dict[str, str]:
  """The options that a `Program` with these arguments is compiled with."""
  leaves = jax.tree.leaves(arguments)
  if any(getattr(leaf, 'dtype', None) == _INT8 for leaf in leaves):
    return {}
  return compiler_options() if any(map(_is_wide, leaves)) else {}


def _is_wide(leaf: Any) -> bool:
  shape = getattr(leaf, 'shape', ())
  return len(shape) >= 2 and min(shape[-2:]) >= _LEAST_WIDTH


@functools.cache
def _has_options() -> bool:
  if (
    jax.default_backend() != 'cpu'
    or platform.machine().lower() not in _X86
    or _FLAG in os.environ.get('XLA_FLAGS', '')
  ):
    return False
  try:
    jax.jit(jnp.negative, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
  except Exception:
    # The exception's type is not public in JAX, and nothing else can fail here.
    return False
  return True


def column_pieces(rows: int, columns: int, dtype: Any) -> int:
  """Into how many equal pieces to split the columns of a product; 1 for none.

  Splitting pays only with the options of a `Program`, and is left out if there
  are several devices, which may hold parts of the factors.

  Args:
    rows: of the left factor.
    columns: of the right factor, a row-major matrix.
    dtype: of both.
  """
  if not _tuning.get() or jax.device_count() > 1:
    return 1
  row_bytes = columns * jnp.dtype(dtype).itemsize
  if not columns or row_bytes % _ALIASING_BYTES or rows < _LEAST_ROWS:
    return 1
  return _equal_pieces(columns)


def long_rows(rows: int, columns: int, dtype: Any) -> bool:
  """Whether a product that is split afterwards is faster as several products.

  The arguments are those of `column_pieces`.
  """
  return (
    _tuning.get()
    and jax.device_count() == 1
    and rows >= _LEAST_ROWS_TO_PART
    and jnp.dtype(dtype) == jnp.float32
    and columns * jnp.dtype(dtype).itemsize > _PAGE_BYTES
  )


def hidden_pieces(rows: int, columns: int, dtype: Any) -> int:
  """Into how many equal pieces to split an MLP's hidden layer; 1 for none.

  The arguments are those of `column_pieces`, for its first matrix.
  """
  return _equal_pieces(columns) if long_rows(rows, columns, dtype) else 1


def _equal_pieces(columns: int) -> int:
  counts = range(-(-columns // _MOST_COLUMNS), columns // _LEAST_COLUMNS + 1)
  return next((n for n in counts if columns % n == 0), 1)


class Program:
  """`jax.jit` with `options_for` its arguments, for programs with products.

  Within another transformation (`jax.jit`, `jax.grad`, `jax.vmap`) it is just
  `jax.jit`, since only the outermost program can have compiler options.
  """

  def __init__(self, function: Callable[..., Any], **options: Any) -> None:
    functools.update_wrapper(self, function)
    self._function = function
    self._options = options
    self._plain = jax.jit(function, **options)

  @functools.cached_property
  def _tuned(self) -> Any:
    # A separate function, because JAX caches traces by function.
    @functools.wraps(self._function)
    def tuned(*args: Any, **kwargs: Any) -> Any:
      token = _tuning.set(True)
      try:
        return self._function(*args, **kwargs)
      finally:
        _tuning.reset(token)

    return jax.jit(tuned, compiler_options=_CPU_OPTIONS, **self._options)

  def _chosen(self, arguments: Any) -> Any:
    if not options_for(arguments):
      return self._plain
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments)):
      return self._plain
    # If all arguments are constants, only a new array shows an outer trace.
    with jax.transfer_guard('allow'):
      within = isinstance(jnp.zeros(()), jax.core.Tracer)
    return self._plain if within else self._tuned

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self._chosen((args, kwargs))(*args, **kwargs)

  def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
    """As `jax.jit(function).lower`."""
    return self._chosen((args, kwargs)).lower(*args, **kwargs)

  def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
    """As `jax.jit(function).trace`, for `jax.export`; without our options."""
    return self._plain.trace(*args, **kwargs)

  def cache_size(self) -> int:
    """How many programs have been compiled by calls."""
    programs: tuple[Any, Any] = (self._plain, self._tuned)
    return sum(program._cache_size() for program in programs)


def jit(
  exact: bool = False, **options: Any
) -> Callable[[Callable[..., Any]], Program]:
  """A decorator that makes a `Program`.

  Args:
    exact: compute products of float32 in float32 on every device. By default
      TPUs round their factors to bfloat16, and NVIDIA's GPUs to TF32.
    **options: those of `jax.jit`.
  """

  def make(function: Callable[..., Any]) -> Program:
    return Program(_exact(function) if exact else function, **options)

  return make


def _exact(function: Callable[..., Any]) -> Callable[..., Any]:
  @functools.wraps(function)
  def exact(*args: Any, **kwargs: Any) -> Any:
    with jax.default_matmul_precision('highest'):
      return function(*args, **kwargs)

  return exact
