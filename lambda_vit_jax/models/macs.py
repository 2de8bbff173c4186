"""Count multiply-accumulates and parameters of a ViT in closed form."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models import decoders, map_inputs
from lambda_vit_jax.models.architecture import hidden_width
from lambda_vit_jax.models.modes import MODES
from lambda_vit_jax.models.relative_bias import table_rows
from lambda_vit_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class BlockSize:
  """What a block computes for one image.

  Attributes:
    attention: its mode.
    neurons: hidden width of its MLP.
    tokens: that it is given.
    merged: that its token merging takes away.
    macs: multiply-accumulates.
  """

  attention: str
  neurons: int
  tokens: int
  merged: int
  macs: int


def block_sizes(module: ViT, executed: bool = False) -> tuple[BlockSize, ...]:
  """The share of each block in `count_macs`, whose arguments these are."""
  found = []
  tokens = module.num_tokens
  matrices = 2 if module.mlp_kind == 'plain' else 3
  for index in range(module.depth):
    given = computed = tokens
    narrow = executed and index >= module.last_mixing_block
    if narrow and module.read_tokens is not None:
      computed = module.read_tokens
    macs = _attention_macs(module, index, tokens, computed)
    merged = module.merge_counts[index] if computed == tokens else 0
    if merged:
      macs += executed * _merging_macs(module, tokens, merged)
      tokens -= merged
      computed = tokens
    neurons = module.hidden_dims[index]
    macs += matrices * computed * neurons * module.embed_dim
    mode = module.attention_modes[index]
    found.append(BlockSize(mode, neurons, given, merged, macs))
  return tuple(found)


def count_macs(module: ViT, executed: bool = False) -> int:
  """Multiply-accumulates of one image (products only, no norm, no softmax).

  Args:
    module: `diluted` blocks count as `full` ones.
    executed: count what really runs: from the last block that mixes tokens on,
      only the tokens that the readout reads have queries, projections and
      MLPs; and the products of token merging. Otherwise, as published, every
      block works on every token.
  """
  width = module.embed_dim
  rows, columns = module.grid_size
  total = rows * columns * module.patch_size**2 * module.in_chans * width
  if module.segmentation is not None:
    total += decoders.count_macs(
      module.segmentation, module.grid_size, width, module.num_classes
    )
  else:
    # The second leading token has a head of its own.
    total += module.num_classes * (1 + module.distilled) * width
  blocks = block_sizes(module, executed)
  total += sum(block.macs for block in blocks)
  if module.pooling == 'map':
    merged = sum(block.merged for block in blocks)
    total += _pooling_macs(module, module.num_tokens - merged)
  return total


def _pooling_macs(module: ViT, tokens: int) -> int:
  """Of attention pooling: one query, keys and values of all patches, an MLP."""
  width, patches = module.embed_dim, tokens - module.num_prefix_tokens
  attention = (2 + 2 * patches) * width**2 + 2 * patches * width
  hidden = hidden_width(width, module.mlp_ratio)
  return attention + 2 * width * hidden


def _attention_macs(
  module: ViT, block_index: int, tokens: int, computed: int
) -> int:
  """Of the attention half of a block that computes some of its tokens."""
  mode = module.attention_modes[block_index]
  if MODES[mode].adds_nothing:
    return 0
  if MODES[mode].has_attention:
    return attention_macs(module, tokens, computed)
  inputs = module.inputs_of(block_index)
  extent = map_extent(module, inputs, tokens, computed)
  return map_inputs.map_macs(inputs, extent)


def attention_macs(module: ViT, tokens: int, computed: int) -> int:
  """Of an attention layer that computes some of its tokens."""
  width = module.embed_dim
  projections = 2 * tokens * width**2 + 2 * computed * width**2
  return projections + 2 * computed * tokens * width


def map_extent(
  module: ViT, inputs: Sequence[str], tokens: int, computed: int
) -> map_inputs.Extent:
  """What the cost of a map of some inputs depends on, in this model."""
  return map_inputs.Extent(
    module.embed_dim,
    module.num_heads,
    tokens,
    module.num_prefix_tokens,
    computed,
    map_inputs.CLASS_MAP in inputs,
  )


def _merging_macs(module: ViT, tokens: int, merged: int) -> int:
  """Of matching keys and of summing the merged tokens."""
  patches = tokens - module.num_prefix_tokens
  second = patches // 2
  head_dim = module.embed_dim // module.num_heads
  matching = (patches - second) * second * head_dim
  return matching + merged * second * (module.embed_dim + 1)


def count_parameters(params: Params) -> int:
  """Number of parameters in a tree of arrays (or of shapes)."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def size_of(module: ViT) -> int:
  """Number of parameters of a module with a head, in closed form.

  The same as counting `abstract_params` (except for the scales of a quantised
  module) without tracing the network, so that a table of all variants is fast.
  """
  width, patch = module.embed_dim, module.patch_size
  rows, columns = module.grid_size
  scale = 0 if module.layer_scale is None else width
  positions = module.num_tokens if module.position_on_class else rows * columns
  positions *= module.absolute_positions
  gated = module.mlp_kind != 'plain'
  biases = (2 + module.key_bias) * module.qkv_bias
  total = patch * patch * module.in_chans * width
  total += 2 * width if module.pre_norm else width
  total += (module.num_prefix_tokens + positions) * width
  total += 2 * width + (width + 1) * module.num_classes * (1 + module.distilled)
  if module.pooling == 'map':
    hidden = hidden_width(width, module.mlp_ratio)
    total += 4 * width**2 + (2 * width + 1) * hidden + 8 * width
  for index, mode in enumerate(module.attention_modes):
    hidden = module.hidden_dims[index]
    if hidden:
      total += 2 * width + (2 * width + 1) * hidden + width + scale
      total += gated * (width + 1) * hidden + 2 * module.mlp_norm * hidden
    if MODES[mode].has_attention:
      total += 2 * width + 4 * width * width + width + scale
      total += biases * width
      if module.relative_bias:
        total += table_rows(module.grid_size) * module.num_heads
    elif mode == 'linear':
      inputs, tokens = module.inputs_of(index), module.num_tokens
      extent = map_extent(module, inputs, tokens, tokens)
      total += map_inputs.map_parameters(inputs, extent)
  return total
