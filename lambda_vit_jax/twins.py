"""A modified network beside the dense one that it was made of.

What corrects a modified network towards the dense one (`recentring`,
`refitting`) carries two streams of the same images from block to block, half a
block at a time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lambda_vit_jax import compilation, programs
from lambda_vit_jax.errors import ModelError
from lambda_vit_jax.images import ImageSet, Placement
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.typing import Array, Params

# The class token is one sample an image: of 32, σ is known within an eighth.
LEAST_IMAGES = 32


def changed_blocks(model: Model, dense: Model) -> list[int]:
  """The blocks in which two models differ, which differ in nothing else.

  Raises:
    ModelError: one was not made of the other.
  """
  for one in (model, dense):
    # Refuses what merges tokens or segments.
    pieces.stem_of(one.module)
    if one.module.quantization != 'none':
      raise ModelError(
        'the model is quantised; correct it first, or dequantize(model)'
      )
    if {'diluted', 'skip'} & set(one.attention_modes):
      raise ModelError(
        f'the blocks are in modes {list(one.attention_modes)}; what is '
        'corrected is a finished model'
      )
  for field in dataclasses.fields(model.module):
    one, other = (getattr(m.module, field.name) for m in (model, dense))
    if field.name not in _FREE and one != other:
      raise ModelError(
        f'the two models differ in {field.name} ({one} and {other}): give the '
        'dense model that the first was made of, and no folded one'
      )
  modes = zip(model.attention_modes, dense.attention_modes, strict=True)
  changed = [index for index, (a, b) in enumerate(modes) if a != b]
  for index in changed:
    if dense.attention_modes[index] != 'full':
      raise ModelError(
        f'block {index} is {model.attention_modes[index]!r} in the first model '
        f'and {dense.attention_modes[index]!r} in the second: give the changed '
        'model first, then the dense one'
      )
  return changed


# Fields in which a network may differ from the one that it was made of.
_FREE = (
  'attention_kernel',
  'attention_modes',
  'compensation',
  'dilution_path',
  'drop_path_rates',
  'linear_inputs',
  'name',
  'parent',
  'remat',
)


@compilation.jit(static_argnames=('block', 'placement'))
def _attend(
  block: EncoderBlock, params: Params, x: Array, placement: Placement
) -> Array:
  """The stream between the halves of a block."""
  found = pieces.run_block(block, params, x)[1]['after_attention']
  return jax.lax.with_sharding_constraint(found, placement.batch)


class Network:
  """A network that runs half a block at a time, on streams that it keeps."""

  def __init__(self, model: Model, placement: Placement):
    self.params: dict[str, Any] = dict(model.params)
    self.streams: list[Array] = []
    self._model = model
    self.placement = placement
    self.placed = placement.replicate(self.params)

  def put(self, changed: Params) -> None:
    """Takes new parameters for some of its parts."""
    self.params |= changed
    self.placed |= self.placement.replicate(changed)

  def embed(self, images: Array) -> None:
    """Makes the first stream of further images."""
    stem = pieces.stem_of(self._model.module)
    outer = pieces.stem_params(self.placed, self._model.depth)
    x, _ = programs.embed(stem, outer, images, self.placement)
    self.streams.append(x)

  def run(self, index: int) -> None:
    """A whole block."""
    self.attention(index)
    self.mlp(index)

  def attention(self, index: int) -> None:
    """The first half of a block."""
    mode = self._model.attention_modes[index]
    if mode == 'identity':
      self._advance(lambda x: 2.0 * x)
    elif mode != 'absent':
      block = pieces.block_of(self._model.module, index, mode)
      params = pieces.block_params(self.placed, index)
      self._advance(lambda x: _attend(block, params, x, self.placement))

  def mlp(self, index: int) -> None:
    """The second half."""
    block = pieces.block_of(self._model.module, index, 'absent')
    params = pieces.mlp_params(self.placed, index)
    one = np.float32(1.0)
    self._advance(
      lambda x: programs.pass_by(block, params, x, one, self.placement)
    )

  def _advance(self, step: Callable[[Array], Array]) -> None:
    # One after the other: each old stream goes as its new one comes.
    for position, x in enumerate(self.streams):
      self.streams[position] = step(x)


def at_block(
  model: Model, dense: Model, images: ImageSet, index: int, size: int
) -> tuple[Network, Network, list[Array]]:
  """Both networks with the streams before a block, and the images' masks.

  Args:
    model: the modified network.
    dense: the dense one.
    images: of both.
    index: the first block in which they differ.
    size: of a micro-batch.
  """
  here, there = (Network(m, images.placement) for m in (model, dense))
  masks: list[Array] = []
  for batch in images.micro_batches(size):
    for network in (here, there):
      network.embed(batch['image'])
    masks.append(batch['mask'])
  for before in range(index):
    for network in (here, there):
      network.run(before)
  return here, there, masks
