"""Storage types of exported files: float32, half precision, int8."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models.model import Model

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float16': np.dtype(np.float16),
}
"""Float types of the portable files; computation stays in float32."""

INT8 = 'int8'
"""The storage type of a quantised model."""

# Rounding to float16 is off by at most 2^-11 of a normal number; an array
# below the normal range loses more.
_FLOAT16_ERROR = 2.0**-10


def cast_params(params: Params, dtype: str) -> tuple[Params, list[str]]:
  """Casts parameters to a storage dtype, except where float16 would fail.

  Args:
    params: float32 arrays.
    dtype: a key of `DTYPES`.

  Returns:
    The tree, and the paths of arrays that stay float32 because float16 would
    overflow or lose more than its rounding error (in the L2 norm).
  """
  kept: list[str] = []
  flat = {}
  for path, leaf in convert.flatten(params).items():
    array = np.asarray(leaf)
    with np.errstate(over='ignore'):
      cast = array.astype(DTYPES[dtype])
    if dtype == 'float16':
      exact = array.astype(np.float64)
      error = np.linalg.norm(cast.astype(np.float64) - exact)
      if not error <= _FLOAT16_ERROR * np.linalg.norm(exact):
        cast = array
        kept.append(path)
    flat[path] = cast
  return convert.unflatten(flat), kept


def stored_model(folded: Model, dtype: str) -> tuple[Model, list[str]]:
  """Casts a folded model to the storage dtype of the portable files.

  Args:
    folded: quantised already if `dtype` is int8, which then changes nothing.
    dtype: a key of `DTYPES`, or `INT8`.

  Returns:
    The model, and the paths that stay float32; see `cast_params`.
  """
  if dtype == INT8:
    return folded, []
  params, kept = cast_params(folded.params, dtype)
  # JAX traces the cast of a JAX array, so the exported program keeps the
  # stored type; the cast of a numpy array would be done while tracing.
  params = jax.tree.map(jnp.asarray, params)
  return folded.replace(params=params), kept
