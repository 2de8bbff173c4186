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

from lambda_vit_jax.analysis import blocks
from lambda_vit_jax.analysis.images import ImageSet, Placement
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import compilation

# The class token is one sample an image: of 32, σ is known within an eighth.
LEAST_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class Pairing:
  """Which block of the dense network each modified one was.

  Attributes:
    origins: the dense index of every block of the modified network.
    changed: the blocks whose mode is another, by their own index.
    dense_depth: blocks of the dense network.
  """

  origins: tuple[int, ...]
  changed: tuple[int, ...]
  dense_depth: int

  @property
  def targets(self) -> tuple[int, ...]:
    """Per block the dense one whose input the next block should be given.

    Where blocks were dropped behind it, that is the stream behind them;
    `dense_depth` for the last.
    """
    return (*self.origins[1:], self.dense_depth)

  @property
  def first(self) -> int:
    """The first block whose attention, or what it reads, is not the dense one.

    The depth where there is none.
    """
    depth = len(self.origins)
    moved = (j for j, origin in enumerate(self.origins) if j != origin)
    return min((*self.changed, *moved), default=depth)

  @property
  def first_short(self) -> int:
    """The first block behind whose MLP the streams differ; likewise."""
    depth = len(self.origins)
    short = (j for j, target in enumerate(self.targets) if target != j + 1)
    return min((*self.changed, *short), default=depth)


def pair(model: Model, dense: Model) -> Pairing:
  """How a modified network was made of a dense one.

  Raises:
    ModelError: it was not, or differs in more than modes and dropped blocks.
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
  origins = _origins(model, dense)
  changed = []
  for index, (mode, origin) in enumerate(
    zip(model.attention_modes, origins, strict=True)
  ):
    old = dense.attention_modes[origin]
    if mode == old:
      continue
    changed.append(index)
    if old != 'full':
      raise ModelError(
        f'block {index} is {mode!r} in the first model and {old!r} in the '
        'second: give the changed model first, then the dense one'
      )
  return Pairing(origins, tuple(changed), dense.depth)


def _origins(model: Model, dense: Model) -> tuple[int, ...]:
  """The dense index of every block, of networks that are alike otherwise."""
  if model.depth < dense.depth and not model.kept_blocks:
    raise ModelError(
      f'the two models differ in depth ({model.depth} and {dense.depth}), and '
      'the first does not say which blocks it kept; make it by drop_blocks'
    )
  ours, theirs = model.block_origins, dense.block_origins
  missing = sorted(set(ours) - set(theirs))
  if missing:
    raise ModelError(
      f'the two models differ in depth: the second has no block {missing[0]} '
      'of the first; give the changed model first, then the dense one'
    )
  origins = tuple(theirs.index(origin) for origin in ours)
  eps = dense.module.norm_eps
  expected = {'norm_eps': (*(eps[origin] for origin in origins), eps[-1])}
  for field in dataclasses.fields(model.module):
    one = getattr(model.module, field.name)
    other = expected.get(field.name, getattr(dense.module, field.name))
    if field.name not in _FREE and one != other:
      raise ModelError(
        f'the two models differ in {field.name} ({one} and {other}): give the '
        'dense model that the first was made of, and no folded one'
      )
  return origins


# Fields in which a network may differ from the one that it was made of.
_FREE = (
  'attention_kernel',
  'attention_modes',
  'compensation',
  # `_origins` says how many blocks there are.
  'depth',
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
    self._done = 0
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
    x, _ = blocks.embed(stem, outer, images, self.placement)
    self.streams.append(x)

  def run_to(self, index: int) -> None:
    """Runs the blocks that are left in front of a block."""
    while self._done < index:
      self.attention(self._done)
      self.mlp(self._done)

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
      lambda x: blocks.pass_by(block, params, x, one, self.placement)
    )
    self._done = index + 1

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
    index: a block in front of which the two do not differ.
    size: of a micro-batch.
  """
  here, there = (Network(m, images.placement) for m in (model, dense))
  masks: list[Array] = []
  for batch in images.micro_batches(size):
    for network in (here, there):
      network.embed(batch['image'])
    masks.append(batch['mask'])
  for network in (here, there):
    network.run_to(index)
  return here, there, masks
