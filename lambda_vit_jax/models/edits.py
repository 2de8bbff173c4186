"""Pure edits of a `Model`: prune, fold, merge tokens, quantize, drop blocks."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import AttentionMode
from lambda_vit_jax.models import merge_schedule, quantization, surgery
from lambda_vit_jax.models import modes as modes_lib
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name


def prune(
  model: Model, layers: Iterable[int], mode: AttentionMode = 'identity'
) -> Model:
  """Removes the attention of `layers`: no array of it stays in the tree.

  The blocks are then what dilution leaves at λ = 0 (METHOD, sections 2 and 5).

  Args:
    model: left as it is.
    layers: block indices; those that are gone already stay as they are.
    mode: `identity` (2x, what dilution ends in) or `absent` (x).

  Returns:
    A new `Model`; arrays that stay are shared with the old one.

  Raises:
    ModelError: an index out of range or given twice, or no attention left.
  """
  modes = modes_lib.modes_without(layers, model.attention_modes, mode)
  modes_lib.check_layers(modes_lib.removed_layers(modes), model.depth)
  gone = [
    index
    for index, (old, new) in enumerate(
      zip(model.attention_modes, modes, strict=True)
    )
    if old != new
  ]
  return model.replace(
    module=model.module.clone(attention_modes=modes),
    params=surgery.prune_tree(model.params, gone),
  )


def merge_tokens(model: Model, merge: Any, start: Any = 0) -> Model:
  """The model with token merging in the blocks that have attention.

  Needs no training: the parameters stay as they are (`merging`).

  Args:
    model: left as it is; merging that it has is replaced.
    merge: tokens per block, a list with one number per block, `constant:8` or
      `decreasing:8` (`merge_plan.merge_schedule`); 0 for none.
    start: the first block that merges.

  Returns:
    A new `Model` that shares the parameters.

  Raises:
    ModelError: another form, or more than the tokens allow.
  """
  module = model.module
  rows, columns = module.grid_size
  schedule = merge_schedule.merge_schedule(
    merge, model.depth, rows * columns, start, model.attention_modes
  )
  return model.replace(module=module.clone(merge=schedule))


def quantize(model: Model, arithmetic: str = 'weights') -> Model:
  """The model with its matrices as 8-bit integers, one scale per channel.

  Needs no data: each matrix by itself (`lambda_vit_jax.models.quantization`). What
  is searched, fitted or trained has to be done before.

  Args:
    model: left as it is; may be quantised already.
    arithmetic: `weights` reads the integers as floats, `dynamic` quantises
      each token as well and multiplies integers.

  Returns:
    A new `Model`; arrays that are no matrix are shared with the old one.

  Raises:
    ModelError: an unknown arithmetic.
  """
  # Decoders have convolutions, which have no form of 8 bits here.
  kept = {
    name: leaf for name, leaf in model.params.items() if name == 'decoder'
  }
  known = quantization.QUANTIZATIONS[1:]
  if arithmetic not in known:
    raise ModelError(
      f'int8 arithmetic {arithmetic!r}; known are {" and ".join(known)}'
    )
  return model.replace(
    module=model.module.clone(quantization=arithmetic),
    params=quantization.quantize_tree(model.params) | kept,
  )


def dequantize(model: Model) -> Model:
  """The model in float32 whose matrices are what 8-bit integers left.

  Args:
    model: left as it is; quantised or not.

  Returns:
    A new `Model`: each matrix is `q · scale`, one scale per output channel
    (docs/method.md, 8-bit integers). Of a model that is not quantised all
    values are the same.
  """
  return model.replace(
    module=model.module.clone(quantization='none'),
    params=quantization.dequantize_tree(model.params),
  )


def fold(model: Model) -> Model:
  """The same function as a plain ViT, no factor 2 anywhere.

  METHOD, section 2: each `identity` block, which doubles the stream, becomes
  `absent`; what later blocks add is divided by 2^k, their norms' epsilons by
  4^k, where k counts the doublings before them.

  Args:
    model: left as it is; without blocks in mode `diluted`.

  Returns:
    A new `Model` with the same logits, exactly but for rounding.
  """
  modes = model.attention_modes
  segmentation = model.module.segmentation
  if segmentation is not None:
    segmentation = segmentation.folded(modes_lib.doublings(modes))
  return model.replace(
    module=model.module.clone(
      attention_modes=modes_lib.fold_modes(modes),
      norm_eps=modes_lib.fold_eps(model.module.norm_eps, modes),
      segmentation=segmentation,
    ),
    params=surgery.fold_tree(model.params, modes),
  )


def drop_blocks(model: Model, blocks: Iterable[int]) -> Model:
  """The network without some of its blocks, attention and MLP.

  What is left is renumbered: an ordinary network of fewer blocks, whose
  `kept_blocks` say which they were. `refit` lets the MLPs that stay make up
  for what is gone.

  Args:
    model: left as it is; may be pruned.
    blocks: indices of blocks.

  Returns:
    A new `Model` that shares the arrays that stay.

  Raises:
    ModelError: an index out of range or given twice, a block that doubles the
      stream (`identity`) or that the decoder reads, or no attention left.
  """
  gone = modes_lib.check_layers(blocks, model.depth)
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
  if len(modes_lib.removed_layers(modes)) == len(modes):
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
    segmentation=_decoder(module.segmentation, kept),
  )
  names = [block_name(index) for index in range(model.depth)]
  params = {k: v for k, v in model.params.items() if k not in names}
  params |= {
    names[new]: model.params[names[old]] for new, old in enumerate(kept)
  }
  return model.replace(
    module=shorter,
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
