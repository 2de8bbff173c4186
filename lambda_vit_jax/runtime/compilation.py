"""How programs are compiled for the machine at hand: the one place that picks.

On a CPU, XLA hands products of floats to YNNPACK. Told not to, it takes
Eigen's loops around oneDNN's kernels, which on x86 are faster by a quarter to
a half; reductions stay with YNNPACK, and with them a softmax and the products
on both its sides, which it fuses into one pass (`benchmarks/products.py`).

Three things Eigen does badly. A matrix whose rows are a multiple of 4 KiB long
is slow, as the rows of a tile then share their places in the cache: such a
product is taken in pieces (`column_pieces`). Where rows are longer than a page
of memory, each row of a tile is on another page, also in what is made from the
product: q, k and v come from three products then, and an MLP adds up pieces of
its hidden layer (`long_rows`, `hidden_pieces`). Products of integers are slower
by much: a program that reads int8 is left to XLA's own choice.
"""

import contextvars
import functools
import os
import platform
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

_X86 = ('x86_64', 'amd64')

_FLAG = 'xla_cpu_experimental_ynn_fusion_type'
_CPU_OPTIONS = {_FLAG: 'LIBRARY_FUSION_TYPE_REDUCE'}

# A row of such a length starts where the row before did, in the cache.
_ALIASING_BYTES = 4096
_MOST_COLUMNS = 384
_LEAST_COLUMNS = 128

# For fewer rows, copying a piece of the matrix costs more than it gains.
_LEAST_ROWS = 64

_PAGE_BYTES = 4096
_LEAST_ROWS_TO_PART = 1024

_INT8 = np.dtype(np.int8)

# Whether what is traced now will be compiled with the options.
_tuning = contextvars.ContextVar('tuning', default=False)


def compiler_options() -> dict[str, str]:
  """What XLA is told on the default backend; empty where it knows best.

  A flag is experimental: a compiler that does not know it any more is left
  alone, and so is a user who sets it in `XLA_FLAGS`.
  """
  return dict(_CPU_OPTIONS) if _has_options() else {}


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
    # Its type is not part of JAX's interface, and nothing else can fail here.
    return False
  return True


def column_pieces(rows: int, columns: int, dtype: Any) -> int:
  """Into how many equal pieces a product's columns are best cut; 1 for none.

  None outside of a `Program`, whose options make it worth while, and none
  where a mesh might have parts of the factors on several devices.

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
  """Whether a product is better made as the parts that it is split into.

  Args:
    rows: of the left factor.
    columns: of the right factor.
    dtype: of both.
  """
  return (
    _tuning.get()
    and jax.device_count() == 1
    and rows >= _LEAST_ROWS_TO_PART
    and jnp.dtype(dtype) == jnp.float32
    and columns * jnp.dtype(dtype).itemsize > _PAGE_BYTES
  )


def hidden_pieces(rows: int, columns: int, dtype: Any) -> int:
  """Into how many equal pieces an MLP's hidden layer is best cut; 1 for none.

  Args:
    rows: of the MLP's input.
    columns: of the hidden layer.
    dtype: of both.
  """
  return _equal_pieces(columns) if long_rows(rows, columns, dtype) else 1


def _equal_pieces(columns: int) -> int:
  counts = range(-(-columns // _MOST_COLUMNS), columns // _LEAST_COLUMNS + 1)
  return next((n for n in counts if columns % n == 0), 1)


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

    # A function of its own: JAX keeps what it traced by function.
    @functools.wraps(self._function)
    def tuned(*args: Any, **kwargs: Any) -> Any:
      token = _tuning.set(True)
      try:
        return self._function(*args, **kwargs)
      finally:
        _tuning.reset(token)

    return jax.jit(tuned, compiler_options=options, **self._options)

  def _chosen(self, arguments: Any) -> Any:
    for leaf in jax.tree.leaves(arguments):
      if isinstance(leaf, jax.core.Tracer):
        return self._plain
      if getattr(leaf, 'dtype', None) == _INT8:
        return self._plain
    # With nothing but constants as arguments, a trace shows in what it makes.
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

  def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
    """As `jax.jit(function).eval_shape`."""
    return self._plain.eval_shape(*args, **kwargs)

  def clear_cache(self) -> None:
    """Forgets what was compiled."""
    for jitted in (self._plain, self._tuned):
      # Not in the type that JAX declares.
      cast(Any, jitted).clear_cache()

  def cache_size(self) -> int:
    """How many programs have been compiled by calls."""
    jitted: dict[int, Any] = {id(f): f for f in (self._plain, self._tuned)}
    return sum(f._cache_size() for f in jitted.values())


def jit(**options: Any) -> Callable[[Callable[..., Any]], Program]:
  """A decorator that makes a `Program`; options are those of `jax.jit`."""
  return lambda function: Program(function, **options)
