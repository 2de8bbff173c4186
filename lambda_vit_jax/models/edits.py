"""Edits of a `Model`, each returns a new one: prune, narrow, fold, quantize.

They need no data, and share the arrays that they do not change. `adapt` has
those that replace the head or the image size.
"""

import dataclasses
import numbers
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import AttentionMode
from lambda_vit_jax.models import (
  map_inputs,
  merge_schedule,
  quantization,
  surgery,
)
from lambda_vit_jax.models.build import check_architecture, with_mlp_dims
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import (
  MODES,
  Layers,
  block_name,
  check_layers,
  doublings,
  fold_eps,
  fold_modes,
  layer_indices,
  modes_without,
  removed_layers,
)
from lambda_vit_jax.models.vit import ViT


@check_arguments
def prune(
  model: Model, layers: Layers, mode: AttentionMode = 'identity'
) -> Model:
  """Removes the attention of `layers`: none of its arrays stays in the tree.

  The blocks are then what dilution leaves at λ = 0
  (docs/method.md#a-block-and-its-modes).

  Args:
    model: left as it is.
    layers: block indices, or a `Selection`; those that have lost their
      attention already stay as they are, but for a map with `absent`.
    mode: `identity` (2x, the end of dilution) or `absent` (x); in this mode the
      map that took the place of an attention layer goes, too.

  Returns:
    A new `Model`; arrays that stay are shared with the old one.

  Raises:
    ModelError: layers that are neither, an index out of range or given twice,
      no attention left, or another mode.
  """
  if mode not in MODES or MODES[mode].parameters:
    known = ' and '.join(name for name in MODES if not MODES[name].parameters)
    raise ModelError(f'prune to mode {mode!r}: known are {known}')
  before, chosen = model.attention_modes, tuple(layer_indices(layers))
  modes = modes_without(chosen, before, mode)
  if mode == 'absent':
    modes = _without_maps(modes, chosen)
  check_layers(removed_layers(modes), model.depth)
  gone = {i for i, left in enumerate(modes) if left != before[i]}
  return model.replace(
    module=with_modes(model.module, modes),
    params=surgery.prune_tree(model.params, gone),
  )


def with_modes(
  module: ViT,
  modes: Sequence[AttentionMode],
  inputs: Mapping[int, Sequence[str]] = types.MappingProxyType({}),
) -> ViT:
  """The module with other modes; maps that stay keep their inputs.

  Args:
    module: without maps before and after, what a fit takes by default stays.
    modes: one per block.
    inputs: of the maps of some blocks, instead of the module's.
  """
  if 'linear' in (*modes, *module.attention_modes):
    shared = map_inputs.shared_inputs(
      modes,
      [
        tuple(inputs.get(index) or module.inputs_of(index))
        for index, mode in enumerate(modes)
        if mode == 'linear'
      ],
    )
    module = module.clone(linear_inputs=shared)
  return module.clone(attention_modes=tuple(modes))


def _without_maps(
  modes: Sequence[AttentionMode], layers: Sequence[int]
) -> tuple[AttentionMode, ...]:
  """The modes, `absent` where one of `layers` is `linear`."""
  return tuple(
    'absent' if mode == 'linear' and index in layers else mode
    for index, mode in enumerate(modes)
  )


@check_arguments
def narrow_mlps(model: Model, kept: Mapping[int, Iterable[int]]) -> Model:
  """Removes hidden neurons of MLPs: none of their weights stays in the tree.

  Nothing makes up for them, for which see `lv.narrow` (docs/compression.md#narrow-mlps). A block that has then
  neither attention nor MLP only scales the stream; in mode `absent` it does
  nothing, and `drop_blocks` leaves it out.

  Args:
    model: left as it is; may be quantised.
    kept: per block the indices of the neurons that stay, in any order; with
      none the whole MLP goes. Other blocks stay as they are.

  Returns:
    A new `Model` with other `mlp_dims`; arrays of other blocks are shared with
    the old one, and of blocks whose neurons all stay.

  Raises:
    ModelError: a block or a neuron that there is not, one given twice, or some
      of the neurons of an MLP whose hidden layer is normalised.
  """
  widths = list(model.mlp_dims)
  chosen = {}
  for index, neurons in kept.items():
    block = _whole(index, model.depth, 'blocks')
    if not isinstance(neurons, Iterable):
      raise ModelError(
        f'narrow_mlps: {neurons!r} for block {block}: give the indices of the '
        'neurons that stay, or lv.narrow a number of them'
      )
    found = [
      _whole(n, widths[block], f'neurons of block {block}') for n in neurons
    ]
    if len({*found}) < len(found):
      raise ModelError(
        f'narrow_mlps: block {block} has a neuron that is given twice; name each '
        'once'
      )
    if len(found) == widths[block]:
      continue
    if found and model.module.mlp_norm:
      raise ModelError(
        f'narrow_mlps: the hidden layer of block {block} is normalised, so that '
        'no neuron can go without changing the others; keep all or none'
      )
    chosen[block] = np.asarray(sorted(found), int)
    widths[block] = len(found)
  if not chosen:
    return model
  return model.replace(
    module=with_mlp_dims(model.module, widths),
    params=surgery.narrow_tree(model.params, chosen),
  )


def _whole(index: Any, count: int, what: str) -> int:
  """An index below `count`; else a `ModelError` that names `what`."""
  whole = isinstance(index, numbers.Integral) and not isinstance(index, bool)
  if not whole or not 0 <= index < count:
    raise ModelError(
      f'narrow_mlps: {index!r} is out of range: {what} are 0 to {count - 1}'
    )
  return int(index)


@check_arguments
def merge_tokens(model: Model, merge: Any, start: Any = 0) -> Model:
  """The model with token merging in the blocks that have attention.

  Needs no training: the parameters stay as they are
  (docs/compression.md#token-merging).

  Args:
    model: left as it is; its own merging, if any, is replaced.
    merge: tokens per block, a list with one number per block, `constant:8` or
      `decreasing:8` (`merge_schedule.merge_schedule`); 0 for none.
    start: the first block that merges.

  Returns:
    A new `Model` that shares the parameters.

  Raises:
    ModelError: another form, more tokens than there are to merge, or maps with
      inputs that merged tokens do not have.
  """
  module = model.module
  rows, columns = module.grid_size
  schedule = merge_schedule.merge_schedule(
    merge, model.depth, rows * columns, start, model.attention_modes
  )
  if any(schedule) and module.computes_maps:
    map_inputs.check_unmerged(map_inputs.union(module.linear_inputs))
  return model.replace(module=check_architecture(module.clone(merge=schedule)))


@check_arguments
def quantize(model: Model, arithmetic: str = 'weights') -> Model:
  """The model with its matrices as 8-bit integers, one scale per channel.

  Needs no data: each matrix is rounded by itself (docs/compression.md#8-bit-integers).
  Quantise last: a quantised model cannot be searched, fitted or trained.

  Args:
    model: left as it is; may be quantised already.
    arithmetic: `weights` reads the integers as floats, `dynamic` quantises
      each token as well and multiplies integers.

  Returns:
    A new `Model`; arrays that are not matrices are shared with the old one.

  Raises:
    ModelError: an unknown arithmetic.
  """
  # Decoders have convolutions, which have no 8-bit form here.
  kept = {name: x for name, x in model.params.items() if name == 'decoder'}
  known = quantization.QUANTIZATIONS[1:]
  if arithmetic not in known:
    raise ModelError(
      f'int8 arithmetic {arithmetic!r}; known are {" and ".join(known)}'
    )
  return model.replace(
    module=model.module.clone(quantization=arithmetic),
    params=quantization.quantize_tree(model.params) | kept,
  )


@check_arguments
def dequantize(model: Model) -> Model:
  """The float32 model with the rounded matrices of a quantised one.

  Args:
    model: left as it is; quantised or not.

  Returns:
    A new `Model`: each matrix is `q · scale`, with one scale per output channel
    (docs/compression.md#8-bit-integers). The values of a model that is not quantised
    do not change.
  """
  return model.replace(
    module=model.module.clone(quantization='none'),
    params=quantization.dequantize_tree(model.params),
  )


@check_arguments
def fold(model: Model) -> Model:
  """The same function as a plain ViT, without the factors 2.

  Each `identity` block, which doubles the stream, becomes `absent`; the branches
  of later blocks are divided by 2^k and the epsilons of their norms by 4^k,
  where k counts the doublings so far (docs/method.md#folding).

  Args:
    model: left as it is; without blocks in mode `diluted`.

  Returns:
    A new `Model` with the same logits, up to rounding.
  """
  modes = model.attention_modes
  segmentation = model.module.segmentation
  if segmentation is not None:
    segmentation = segmentation.folded(doublings(modes))
  return model.replace(
    module=model.module.clone(
      attention_modes=fold_modes(modes),
      norm_eps=fold_eps(model.module.norm_eps, modes),
      segmentation=segmentation,
    ),
    params=surgery.fold_tree(model.params, modes),
  )


@check_arguments
def drop_blocks(model: Model, blocks: Iterable[int]) -> Model:
  """The network without some of its blocks, attention and MLP.

  The other blocks are renumbered: the result is an ordinary network of fewer
  blocks, whose `kept_blocks` are their old indices. `refit` fits the remaining
  MLPs to make up for the dropped blocks.

  Args:
    model: left as it is; may be pruned.
    blocks: indices of blocks.

  Returns:
    A new `Model` that shares the arrays that stay.

  Raises:
    ModelError: an index out of range or given twice, a block that doubles the
      stream (`identity`) or that the decoder reads, or no attention left.
  """
  gone = check_layers(blocks, model.depth)
  if not gone:
    return model
  module = model.module
  for index in gone:
    if model.attention_modes[index] == 'identity':
      raise ModelError(
        f'block {index} is identity, which doubles the stream, and cannot be '
        'dropped; fold(model) first'
      )
  kept = tuple(i for i in range(model.depth) if i not in gone)
  modes = tuple(model.attention_modes[i] for i in kept)
  if len(removed_layers(modes)) == len(modes):
    raise ModelError(
      f'without the blocks {list(gone)} no attention is left; keep a block '
      'that has one'
    )
  shorter = module.clone(
    depth=len(kept),
    attention_modes=modes,
    norm_eps=(*(module.norm_eps[i] for i in kept), module.norm_eps[-1]),
    drop_path_rates=tuple(module.drop_path_rates[i] for i in kept),
    merge=tuple(module.merge[i] for i in kept) if module.merge else (),
    linear_inputs=map_inputs.check_all_inputs(
      [module.inputs_of(i) for i in kept], len(kept)
    ),
    segmentation=_decoder(module.segmentation, kept),
    mlp_dims=(),
  )
  widths = tuple(model.mlp_dims[i] for i in kept)
  names = [block_name(index) for index in range(model.depth)]
  params = {k: v for k, v in model.params.items() if k not in names}
  params |= {
    names[new]: model.params[names[old]]
    for new, old in enumerate(kept)
    if names[old] in model.params
  }
  return model.replace(
    module=with_mlp_dims(shorter, widths),
    params=params,
    kept_blocks=tuple(model.block_origins[i] for i in kept),
  )


def _decoder(decoder: Decoder | None, kept: tuple[int, ...]) -> Decoder | None:
  """The decoder, reading the same blocks under their new numbers."""
  if decoder is None:
    return None
  for block in decoder.blocks:
    if block not in kept:
      raise ModelError(
        f'the decoder reads block {block}, which cannot be dropped; it reads '
        f'{list(decoder.blocks)}'
      )
  blocks = tuple(kept.index(block) for block in decoder.blocks)
  return dataclasses.replace(decoder, blocks=blocks)
