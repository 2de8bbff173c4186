"""Multiply-accumulates of a ViT, by the formula of METHOD, section 1."""

from collections.abc import Sequence

import jax
import numpy as np

from lambda_vit_jax.core.typing import AttentionMode, Params
from lambda_vit_jax.models.modes import HAS_ATTENTION
from lambda_vit_jax.models.vit import ViT


def count_macs(
  *,
  modes: Sequence[AttentionMode],
  tokens: int,
  patches: int,
  patch_inputs: int,
  embed_dim: int,
  mlp_ratio: float,
  num_classes: int,
  read_tokens: int | None = None,
  linear_inputs: Sequence[str] = ('token',),
  merged: Sequence[int] = (),
  leading_tokens: int = 1,
  key_dim: int | None = None,
) -> int:
  """Multiply-accumulates of one image (products only, no norm, no softmax).

  Args:
    modes: one attention mode per block; `diluted` counts as `full`.
    tokens: tokens per image, the class token included.
    patches: patches per image.
    patch_inputs: numbers in one patch, `patch_size² · channels`.
    embed_dim: the width D.
    mlp_ratio: hidden width of the MLP over D.
    num_classes: outputs of all heads together.
    read_tokens: None for the published convention, in which every block
      works on every token. Otherwise what is really executed when only that
      many leading tokens are read: from the last block that mixes tokens on,
      only they have queries, projections and MLPs.
    linear_inputs: what blocks in mode `linear` map.
    merged: tokens that each block merges away behind its attention; none
      where it is empty.
    leading_tokens: tokens that are never merged.
    key_dim: channels that tokens are matched on, to count the products of
      matching and merging too; None leaves them out.
  """
  total = patches * patch_inputs * embed_dim + num_classes * embed_dim
  mixing_modes = {'full', 'diluted'}
  if 'mean' in linear_inputs:
    mixing_modes.add('linear')
  mixing = [i for i, mode in enumerate(modes) if mode in mixing_modes]
  last = mixing[-1] if mixing else -1
  square = embed_dim * embed_dim
  for index, mode in enumerate(modes):
    narrow = read_tokens is not None and index >= last
    rows = read_tokens if narrow and read_tokens else tokens
    if mode in ('full', 'diluted'):
      total += 2 * tokens * square + 2 * rows * square
      total += 2 * rows * tokens * embed_dim
    elif mode == 'linear':
      total += rows * square
      if 'mean' in linear_inputs:
        # Once an image and map; the class token's map may be the only one.
        own = 'class_map' in linear_inputs
        total += (own + (rows > own)) * square
    if merged and merged[index] and not narrow:
      second = (tokens - leading_tokens) // 2
      if key_dim is not None:
        first = tokens - leading_tokens - second
        total += first * second * key_dim
        total += merged[index] * second * (embed_dim + 1)
      tokens -= merged[index]
      rows = tokens
    total += int(2 * rows * mlp_ratio * square)
  return total


def count_parameters(params: Params) -> int:
  """Numbers in a tree of arrays (or of shapes)."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def size_of(module: ViT) -> int:
  """Numbers in the parameters of a module with a head, in closed form.

  The same as counting `abstract_params` (but for the scales of a quantised
  one), without tracing the network: a table of all variants is printed at
  once.
  """
  width, patch = module.embed_dim, module.patch_size
  rows, columns = module.grid_size
  hidden = int(width * module.mlp_ratio)
  scale = 0 if module.layer_scale is None else width
  positions = module.num_tokens if module.position_on_class else rows * columns
  total = patch * patch * module.in_chans * width
  total += 2 * width if module.pre_norm else width
  total += (module.num_prefix_tokens + positions) * width
  total += 2 * width + (width + 1) * module.num_classes * (1 + module.distilled)
  for mode in module.attention_modes:
    total += 2 * width + (2 * width + 1) * hidden + width + scale
    if mode in HAS_ATTENTION:
      total += 2 * width + 4 * width * width + width + scale
      total += 3 * width if module.qkv_bias else 0
    elif mode == 'linear':
      maps = 1 + ('class_map' in module.linear_inputs)
      squares = 1 + ('mean' in module.linear_inputs)
      total += maps * (squares * width * width + width)
  return total
