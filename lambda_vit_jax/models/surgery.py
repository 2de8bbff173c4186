"""Edit parameter trees: prune attention layers, fold the factor 2 into weights.

A tree is a plain nested dict with blocks under `block00`, `block01`, …; the
modes are in `lambda_vit_jax.models.modes`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from lambda_vit_jax.core.typing import AttentionMode, Params
from lambda_vit_jax.models import map_inputs
from lambda_vit_jax.models.modes import (
  ATTENTION_PARTS,
  block_name,
  doublings,
)
from lambda_vit_jax.models.quantization import SCALE


def prune_tree(tree: Params, layers: Iterable[int]) -> Params:
  """Drops the attention half of `layers`; shares all other leaves.

  Works on any tree with the structure of the parameters (optimizer moments,
  moving averages) and is idempotent.
  """
  pruned = dict(tree)
  for layer in layers:
    name = block_name(layer)
    pruned[name] = without_attention(pruned[name])
  return pruned


def without_attention(block: Params) -> Params:
  """The parameters of one block without its attention half."""
  return {name: block[name] for name in block if name not in ATTENTION_PARTS}


def keep_maps(tree: Params, layers: Iterable[int]) -> Params:
  """`prune_tree`, but the affine maps of `layers` stay."""
  layers = tuple(layers)
  kept = prune_tree(tree, layers)
  for name in map(block_name, layers):
    parts = tree[name].get('attn', {})
    children = map_inputs.CHILDREN
    if maps := {part: parts[part] for part in parts if part in children}:
      kept[name] = kept[name] | {'attn': maps}
  return kept


def fold_tree(params: Params, modes: Sequence[AttentionMode]) -> Params:
  """Divides the output of each branch of block l by 2^k(l).

  The factor goes into LayerScale's γ if there is one, otherwise into kernel and
  bias of the output projection. A power of two is exact in floating point unless
  a number underflows.
  """
  folded = dict(params)
  for index, count in enumerate(doublings(modes)):
    if not count:
      continue
    block = dict(params[block_name(index)])
    scale = 0.5**count
    for part, projection, layer_scale in (
      ('attn', 'proj', 'ls1'),
      *(('attn', name, '') for name in map_inputs.WRITERS),
      ('mlp', 'fc2', 'ls2'),
    ):
      if projection not in block.get(part, {}):
        continue
      if layer_scale in block:
        block[layer_scale] = _scaled(block[layer_scale], scale)
      else:
        scaled = _scaled(block[part][projection], scale)
        block[part] = block[part] | {projection: scaled}
    folded[block_name(index)] = block
  return folded


def _scaled(leaves: dict[str, Any], scale: float) -> dict[str, Any]:
  # The integers of a quantised kernel stay; its scales are multiplied.
  fixed = 'kernel' if SCALE in leaves else ''
  return {
    name: value if name == fixed else value * scale
    for name, value in leaves.items()
  }
