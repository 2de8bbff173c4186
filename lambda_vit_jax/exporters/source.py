"""The forms of a model that exports need: as trained, folded, and cast."""

import dataclasses

import jax.numpy as jnp

from lambda_vit_jax.exporters.storage import INT8, stored_model
from lambda_vit_jax.models.edits import dequantize, fold, quantize
from lambda_vit_jax.models.model import Model


@dataclasses.dataclass(frozen=True)
class Source:
  """A model to export.

  Attributes:
    model: as trained, with its factors of 2; quantised for dtype int8.
    unquantized: the same model in float32.
    folded: the same function without factors of 2 (docs/method.md#folding).
    stored: `folded` with its arrays in the storage dtype.
    kept_float32: paths of arrays that float16 cannot hold.
    dtype: a key of `storage.DTYPES`, or `int8`.
    zero_fill: see `export`.
  """

  model: Model
  unquantized: Model
  folded: Model
  stored: Model
  kept_float32: list[str]
  dtype: str
  zero_fill: bool

  @property
  def is_quantized(self) -> bool:
    """Whether matrices are 8-bit integers."""
    return self.model.module.quantization != 'none'

  @property
  def merges_tokens(self) -> bool:
    """Whether the network merges tokens."""
    return any(self.model.module.merge_counts)


def make_source(
  model: Model, dtype: str, zero_fill: bool, int8_arithmetic: str
) -> Source:
  """Prepares a model for export; see `export` for the arguments."""
  stored_as_int8 = quantize(model, int8_arithmetic) if dtype == INT8 else model
  unfolded = plain(stored_as_int8)
  folded = fold(unfolded)
  stored, kept = stored_model(folded, dtype)
  return Source(
    model=unfolded,
    unquantized=plain(dequantize(model)),
    folded=folded,
    stored=stored,
    kept_float32=kept,
    dtype=dtype,
    zero_fill=zero_fill,
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


def with_stock_epsilon(source: Source) -> Model:
  """The folded model as a program sees it that has one epsilon for all norms.

  That epsilon is the unfolded model's own.
  """
  folded = source.folded
  epsilon = source.model.module.norm_eps[-1]
  module = folded.module.clone(norm_eps=(epsilon,) * (folded.depth + 1))
  return folded.replace(module=module)
