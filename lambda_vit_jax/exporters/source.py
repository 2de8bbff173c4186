"""The forms of a model that exports need: as trained, folded, cast or int8."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.exporters.calibration import STATIC, Calibration
from lambda_vit_jax.models.edits import dequantize, fold, quantize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.quantization import QUANTIZATIONS

DTYPES = ('float32', 'bfloat16', 'float16', 'int8')
"""Storage types of the portable files; computation stays in float32."""

ARITHMETICS = (*QUANTIZATIONS[1:], STATIC)
"""What `export.int8_arithmetic` may be."""

# Rounding to float16 is off by at most 2^-11 of a normal number; an array
# below the normal range loses more.
_FLOAT16_ERROR = 2.0**-10


@dataclasses.dataclass(frozen=True)
class Source:
  """A model to export.

  Attributes:
    model: as trained, with its factors of 2; quantised for dtype int8.
    unquantized: the same model in float32.
    folded: the same function without factors of 2 (docs/method.md#folding).
    stored: `folded` with its arrays in the storage dtype.
    kept_float32: paths of arrays that float16 cannot hold.
    dtype: of `DTYPES`.
    zero_fill: see `export`.
    calibration: of int8 files with `static` arithmetic, whose `model` is in
      float32; otherwise None.
  """

  model: Model
  unquantized: Model
  folded: Model
  stored: Model
  kept_float32: list[str]
  dtype: str
  zero_fill: bool
  calibration: Calibration | None = None


def make_source(
  model: Model,
  dtype: str,
  zero_fill: bool,
  int8_arithmetic: str,
  calibration: Calibration | None = None,
) -> Source:
  """Prepares a model for export; see `export` for the arguments."""
  unquantized = plain(dequantize(model))
  if calibration is not None:
    model = unquantized
  elif dtype == 'int8':
    model = quantize(model, int8_arithmetic)
  model = plain(model)
  folded = fold(model)
  params, kept = folded.params, list[str]()
  if dtype != 'int8':
    params, kept = cast_params(params, dtype)
    # JAX traces the cast of a JAX array, so the exported program keeps the
    # stored type; the cast of a numpy array would be done while tracing.
    params = jax.tree.map(jnp.asarray, params)
  stored = folded.replace(params=params)
  return Source(
    model, unquantized, folded, stored, kept, dtype, zero_fill, calibration
  )


def plain(model: Model) -> Model:
  """Returns `model` without options that only serve training or speed.

  A model that is read back then runs the same program, compiled once.
  """
  module = model.module.clone(
    dtype=jnp.float32,
    attention_kernel='explicit',
    remat=False,
    drop_path_rates=(0.0,) * model.depth,
  )
  return model.replace(module=module)


def cast_params(params: Params, dtype: str) -> tuple[Params, list[str]]:
  """Casts parameters to a storage dtype, except where float16 would fail.

  Args:
    params: float32 arrays.
    dtype: a float type of `DTYPES`.

  Returns:
    The tree, and the paths of arrays that stay float32 because float16 would
    overflow or lose more than its rounding error (in the L2 norm).
  """
  kept = []
  flat = {}
  for path, leaf in convert.flatten(params).items():
    array = np.asarray(leaf)
    with np.errstate(over='ignore'):
      cast = array.astype(dtype)
    if dtype == 'float16':
      exact = array.astype(np.float64)
      error = np.linalg.norm(cast.astype(np.float64) - exact)
      if not error <= _FLOAT16_ERROR * np.linalg.norm(exact):
        cast = array
        kept.append(path)
    flat[path] = cast
  return convert.unflatten(flat), kept
