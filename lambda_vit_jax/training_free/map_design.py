"""Inputs of a map as the columns of a regression, and back to parameters.

The columns follow `models.map_inputs.INPUTS`, one block of them per input; the
intercepts of `positions` are the coefficients of one column per position.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import map_inputs
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.linear_attention import mix_heads, neighbour_mean
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training_free.least_squares import AffineMap


def num_columns(module: ViT, inputs: Sequence[str]) -> int:
  """Columns of the design."""
  return sum(
    module.num_tokens if name == 'positions' else module.embed_dim
    for name in map_inputs.rows_of(inputs)
  )


def columns_of(
  module: ViT, known: Sequence[str], inputs: Sequence[str]
) -> np.ndarray:
  """Indices of the columns of some `inputs` in the design of all `known`."""
  found, start = [], 0
  for name in map_inputs.rows_of(known):
    size = num_columns(module, (name,))
    if name in inputs:
      found.append(np.arange(start, start + size))
    start += size
  return np.concatenate(found)


def design(
  module: ViT,
  inputs: Sequence[str],
  epsilon: float,
  sources: Mapping[str, Params],
  x: Array,
) -> Array:
  """The columns for every token of a stream; traceable.

  Args:
    module: of the stream.
    inputs: of the map.
    epsilon: of the block's norms.
    sources: parameters from which inputs are computed, as in `attn`.
    x: `[batch, tokens, embed]`.

  Returns:
    `[batch, tokens, columns]`.
  """
  normal = normalize(x, epsilon)
  leading = module.num_prefix_tokens
  columns = [normal]
  if 'mean' in inputs:
    mean = normal.mean(axis=1, keepdims=True)
    columns.append(jnp.broadcast_to(mean, normal.shape))
  if 'neighbours' in inputs:
    around = neighbour_mean(normal[:, leading:], module.grid_size)
    columns.append(jnp.pad(around, ((0, 0), (leading, 0), (0, 0))))
  if 'positions' in inputs:
    each = jnp.eye(x.shape[1], dtype=normal.dtype)
    columns.append(jnp.broadcast_to(each, (x.shape[0], *each.shape)))
  if 'mixing' in inputs:
    values = sources['values']
    columns.append(
      mix_heads(
        normal @ values['kernel'] + values['bias'], sources['mixer']['weights']
      )
    )
  return jnp.concatenate(columns, axis=-1)


def to_parameters(
  module: ViT,
  inputs: Sequence[str],
  shared: AffineMap,
  own: AffineMap | None = None,
) -> Params:
  """Maps as children of `attn` in mode `linear`, float32.

  Args:
    module: of the network.
    inputs: of the maps.
    shared: of all tokens, or of all but the class token.
    own: of the class token.
  """
  found: Params = {}
  start = 0
  for name, row in map_inputs.rows_of(inputs).items():
    size = num_columns(module, (name,))
    rows = slice(start, start + size)
    start += size
    leaf = 'bias' if name == 'positions' else 'kernel'
    found[row.child] = {leaf: _put(shared.kernel[rows])}
    if own is not None and row.by_class:
      found[f'class_{row.child}'] = {leaf: _put(own.kernel[rows])}
  found['linear']['bias'] = _put(shared.bias)
  if own is not None:
    found['class_linear']['bias'] = _put(own.bias)
  return found


def _put(leaf: np.ndarray) -> Array:
  # numpy, because jax.numpy would compile a program for each shape.
  return jax.device_put(np.asarray(leaf, np.float32))
