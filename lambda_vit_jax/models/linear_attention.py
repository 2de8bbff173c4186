"""The map that replaces an attention layer in mode `linear`.

`models.map_inputs` is the table of its inputs; the functions here compute those
that are not the token itself, for the network and for the fit.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.attention import Attention
from lambda_vit_jax.models.layers import Dense, accumulation_dtype, parameter
from lambda_vit_jax.models.map_inputs import CLASS_MAP
from lambda_vit_jax.models.token_merging import weighted_mean


@functools.cache
def window_counts(grid: tuple[int, int]) -> np.ndarray:
  """`[rows, columns, 1]` float32: patches in the 3 x 3 window of each."""
  sides = [np.full(side, 3.0, np.float32) for side in grid]
  for side in sides:
    side[[0, -1]] -= 1.0
  return np.multiply.outer(*sides)[..., None]


def neighbour_mean(x: Array, grid: tuple[int, int]) -> Array:
  """Mean over the 3 x 3 patches around each, those beyond the edge left out.

  Args:
    x: patches, `[batch, rows·columns, embed]`.
    grid: (rows, columns), at least 3 each.

  Returns:
    The shape of `x`.
  """
  sums = x.reshape(x.shape[0], *grid, x.shape[-1])
  sums = jnp.pad(sums, ((0, 0), (1, 1), (1, 1), (0, 0)))
  sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
  sums = sums[:, :, :-2] + sums[:, :, 1:-1] + sums[:, :, 2:]
  return (sums / window_counts(grid).astype(sums.dtype)).reshape(x.shape)


def mix_heads(values: Array, weights: Array) -> Array:
  """Mixes the tokens of each head: `A_h·v_h`.

  Args:
    values: `[batch, tokens, embed]`, the channels of one head after another.
    weights: `[heads, queries, tokens]`.

  Returns:
    `[batch, queries, embed]` in the dtype of `values`.
  """
  batch, tokens, width = values.shape
  heads, queries, _ = weights.shape
  split = values.reshape(batch, tokens, heads, width // heads)
  mixed = jnp.einsum(
    'hqk,bkhd->bqhd',
    weights.astype(values.dtype),
    split,
    preferred_element_type=accumulation_dtype(values.dtype),
  )
  return mixed.reshape(batch, queries, width).astype(values.dtype)


class Mixer(nn.Module):
  """The fixed matrix over tokens of every head."""

  num_heads: int

  @nn.compact
  def __call__(self, values: Array, queries: int | None) -> Array:
    """Values `[batch, tokens, embed]` -> `[batch, queries or tokens, embed]`."""
    tokens = values.shape[1]
    shape = (self.num_heads, tokens, tokens)
    weights = parameter(self, 'weights', nn.initializers.zeros, shape)
    return mix_heads(values, weights[:, :queries])


class Intercepts(nn.Module):
  """An intercept per position."""

  tokens: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Adds those of the leading tokens to `[batch, rows, embed]`."""
    shape = (self.tokens, x.shape[-1])
    bias = parameter(self, 'bias', nn.initializers.zeros, shape)
    return x + bias[: x.shape[1]].astype(x.dtype)


class LinearAttention(nn.Module):
  """The linear function of a token's inputs that replaces its attention.

  Attributes:
    inputs: of `map_inputs.LINEAR_INPUTS`.
    num_heads: of the attention layer, for `mixing`.
    num_prefix_tokens: tokens before the patches.
    grid_size: patches along height and width, for `neighbours` and `positions`.
  """

  inputs: tuple[str, ...] = ('token',)
  num_heads: int = 1
  num_prefix_tokens: int = 1
  grid_size: tuple[int, int] = (0, 0)
  dtype: Any = jnp.float32
  quantization: str = 'none'

  def _dense(self, x: Array, name: str, use_bias: bool = False) -> Array:
    return Dense(
      x.shape[-1],
      self.dtype,
      self.quantization,
      nn.initializers.zeros,
      use_bias,
      name=name,
    )(x)

  def _map(
    self, rows: Array, mean: Array | None, mixed: Array | None, prefix: str
  ) -> Array:
    """The part of the inputs for which the class token may have its own map."""
    mapped = self._dense(rows, f'{prefix}linear', use_bias=True)
    if mean is not None:
      mapped = mapped + self._dense(mean, f'{prefix}mean')
    if mixed is not None:
      mapped = mapped + self._dense(mixed, f'{prefix}mixed')
    return mapped

  @nn.compact
  def __call__(
    self, x: Array, queries: int | None = None, sizes: Array | None = None
  ) -> Array:
    """n(x) `[batch, tokens, embed]` -> `[batch, queries or tokens, embed]`.

    The mean weights each token by `sizes` `[batch, tokens]`.
    """
    mean = mixed = None
    if 'mean' in self.inputs:
      wide = x.astype(accumulation_dtype(x.dtype))
      mean = weighted_mean(wide, sizes)[:, None].astype(self.dtype)
    if 'mixing' in self.inputs:
      values = self._dense(x, 'values', use_bias=True)
      mixed = Mixer(self.num_heads, name='mixer')(values, queries)
    rows = x if queries is None else x[:, :queries]
    if CLASS_MAP not in self.inputs:
      mapped = self._map(rows, mean, mixed, '')
    else:
      parts = []
      for tokens, prefix in ((slice(1), 'class_'), (slice(1, None), '')):
        if rows[:, tokens].shape[1]:
          own = None if mixed is None else mixed[:, tokens]
          parts.append(self._map(rows[:, tokens], mean, own, prefix))
      mapped = jnp.concatenate(parts, axis=1)
    return self._of_places(mapped, x)

  def _of_places(self, mapped: Array, x: Array) -> Array:
    """Adds what depends on where a token is, for the rows that there are."""
    leading = self.num_prefix_tokens
    if 'neighbours' in self.inputs and mapped.shape[1] > leading:
      around = neighbour_mean(x[:, leading:], self.grid_size)
      around = self._dense(around, 'neighbours')
      mapped = mapped + jnp.pad(around, ((0, 0), (leading, 0), (0, 0)))
    if 'positions' in self.inputs:
      # `x` may be the leading tokens alone, where no input mixes tokens.
      tokens = leading + math.prod(self.grid_size)
      mapped = Intercepts(tokens, name='positions')(mapped)
    return mapped


class BlendedAttention(nn.Module):
  """An attention layer and the map that it is diluted into.

  The parameters of both are in the same place as without the other, so that
  dropping one leaves the tree of the other.
  """

  attention: Attention
  affine: LinearAttention

  def setup(self) -> None:
    nn.share_scope(self, self.attention)
    nn.share_scope(self, self.affine)

  def __call__(
    self,
    x: Array,
    normal: Array,
    queries: int | None = None,
    sizes: Array | None = None,
  ) -> tuple[Array, Array]:
    """The attention of norm1's output `x`, and the map of `normal`, n(x)."""
    attention, _ = self.attention(x, queries, sizes)
    return attention, self.affine(normal, queries, sizes)
