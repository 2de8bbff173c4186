"""Edit parameter trees: prune attention and MLPs, fold the factor 2 into weights.

A tree is a plain nested dict with blocks under `block00`, `block01`, …; the
modes are in `lambda_vit_jax.models.modes`. A block without any parameter, both
of whose halves are gone, has no entry.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lambda_vit_jax.core.typing import AttentionMode, Params
from lambda_vit_jax.models import map_inputs
from lambda_vit_jax.models.modes import (
  ATTENTION_PARTS,
  MLP_PARTS,
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
    _put(pruned, name, without_attention(pruned.get(name, {})))
  return pruned


def _put(tree: Params, name: str, block: Params) -> None:
  """Replaces a block of `tree`; one without parameters is taken out."""
  if block:
    tree[name] = block
  else:
    tree.pop(name, None)


def without_attention(block: Params) -> Params:
  """The parameters of one block without its attention half."""
  return {name: block[name] for name in block if name not in ATTENTION_PARTS}


def without_mlp(block: Params) -> Params:
  """The parameters of one block without its MLP half."""
  return {name: block[name] for name in block if name not in MLP_PARTS}


def narrow_tree(tree: Params, kept: Mapping[int, np.ndarray]) -> Params:
  """Keeps some hidden neurons of MLPs; shares the leaves of other blocks.

  Args:
    tree: with the structure of the parameters, as of `prune_tree`.
    kept: per block the indices of the neurons that stay, in their new order; of
      none, the MLP goes with its norm and scale.
  """
  narrowed = dict(tree)
  for index, neurons in kept.items():
    name = block_name(index)
    block = narrowed.get(name, {})
    if not len(neurons):
      _put(narrowed, name, without_mlp(block))
    elif 'mlp' in block:
      narrowed[name] = block | {'mlp': take_neurons(block['mlp'], neurons)}
  return narrowed


def take_neurons(mlp: Params, neurons: np.ndarray) -> Params:
  """An MLP with some of its hidden neurons, in the order given.

  Of a gated MLP each neuron has a gate and a value, in two matrices or in the
  halves of one. A norm of the hidden layer would then be one of fewer values,
  which is another function.
  """
  second = mlp['fc2']
  found = {'fc2': second | {'kernel': second['kernel'][neurons]}}
  columns = neurons
  if _is_packed(mlp):
    columns = np.concatenate([neurons, neurons + len(second['kernel'])])
  for name in mlp.keys() - found.keys():
    found[name] = {leaf: x[..., columns] for leaf, x in mlp[name].items()}
  return {name: found[name] for name in mlp}


def neurons_of(mlp: Params) -> np.ndarray:
  """What makes each hidden neuron, `[hidden, numbers]`; not what it writes."""
  halves = 1 + _is_packed(mlp)
  rows = []
  for name in sorted(mlp.keys() - {'fc2'}):
    for _, leaf in sorted(mlp[name].items()):
      columns = np.split(np.asarray(leaf), halves, axis=-1)
      rows += [part.reshape(-1, part.shape[-1]) for part in columns]
  return np.ascontiguousarray(np.concatenate(rows).T)


def with_zero_neurons(mlp: Params, zeros: Params) -> Params:
  """An MLP as wide as `zeros`, an MLP of zeros: the added neurons do nothing.

  With weights and bias of zero a neuron of any kind here is zero.
  """
  found: Params = {}
  for name, layer in zeros.items():
    found[name] = {}
    for leaf, whole in layer.items():
      own = np.asarray(mlp[name][leaf])
      # The halves of a packed layer are widened each.
      halves = 2 if name == 'fc1' and _is_packed(zeros) else 1
      parts = zip(
        np.split(own, halves, axis=-1),
        np.split(whole.astype(own.dtype), halves, axis=-1),
        strict=True,
      )
      widened = []
      for part, wide in parts:
        wide[tuple(map(slice, part.shape))] = part
        widened.append(wide)
      found[name][leaf] = np.concatenate(widened, axis=-1)
  return found


def _is_packed(mlp: Params) -> bool:
  """Whether gate and value of a gated MLP are the halves of one matrix."""
  first, second = mlp.get('fc1', {}).get('kernel'), mlp['fc2']['kernel']
  return first is not None and first.shape[-1] == 2 * second.shape[0]


def keep_maps(tree: Params, layers: Iterable[int]) -> Params:
  """`prune_tree`, but the affine maps of `layers` stay."""
  layers = tuple(layers)
  kept = prune_tree(tree, layers)
  for name in map(block_name, layers):
    parts = tree.get(name, {}).get('attn', {})
    children = map_inputs.CHILDREN
    if maps := {part: parts[part] for part in parts if part in children}:
      kept[name] = kept.get(name, {}) | {'attn': maps}
  return kept


def fold_tree(params: Params, modes: Sequence[AttentionMode]) -> Params:
  """Divides the output of each branch of block l by 2^k(l).

  The factor goes into LayerScale's γ if there is one, otherwise into kernel and
  bias of the output projection. A power of two is exact in floating point unless
  a number underflows.
  """
  folded = dict(params)
  for index, count in enumerate(doublings(modes)):
    if not count or block_name(index) not in params:
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
