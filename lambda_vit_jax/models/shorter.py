"""A network with whole blocks left out: a plain Vision Transformer, less deep."""

import dataclasses
from collections.abc import Iterable

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.models import surgery
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.surgery import block_name


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
  gone = surgery.check_layers(blocks, model.depth)
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
  if len(surgery.removed_layers(modes)) == len(modes):
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
