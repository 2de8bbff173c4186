"""The streams of a set of images before every block of a network that changes.

A trial that differs from the network from a block on starts from the streams
before that block. They are kept on the devices, for as many blocks as the memory
allows, and computed again from the last ones that are there. A fit that needs no
more samples leaves the later micro-batches where they are.
"""

from collections.abc import Iterator

import jax
import numpy as np

from lambda_vit_jax.analysis.blocks import BlockRunner
from lambda_vit_jax.analysis.images import ImageSet, Placement
from lambda_vit_jax.analysis.memory import GIB
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation


@compilation.jit(
  exact=True, static_argnames=('block', 'read_tokens', 'placement')
)
def _run_block(
  block: EncoderBlock,
  params: Params,
  x: Array,
  *,
  read_tokens: int | None,
  placement: Placement,
) -> Array:
  output, _ = pieces.run_block(block, params, x, read_tokens)
  return jax.lax.with_sharding_constraint(output, placement.batch)


@compilation.jit(exact=True, static_argnames=('stem', 'placement'))
def _read_out(
  stem: ViT, params: Params, x: Array, mask: Array, placement: Placement
) -> tuple[Array, Array, Array]:
  """Logits, features and mask of a micro-batch, on every device."""
  logits, taps = pieces.readout(stem, params, x)
  found = logits, taps['features'].astype(logits.dtype), mask
  return jax.lax.with_sharding_constraint(found, placement.replicated)


class Streams:
  """A network, and its streams of all images.

  Attributes:
    model: the network as it is.
    placement: devices of the streams.
    masks: of the micro-batches, `[batch]`, False for padding.
    blocks_run: blocks that ran so far, times the images.
  """

  def __init__(
    self, model: Model, images: ImageSet, size: int, memory_gib: float
  ):
    """Embeds the images.

    Args:
      model: without merging, decoder or unfinished dilution.
      images: see `images.read_images`.
      size: images of a micro-batch.
      memory_gib: for the streams that are kept, per device; those before two
        blocks are kept in any case.
    """
    self.model = model
    self.blocks_run = 0
    self.placement = images.placement
    self._runner = self._runner_of(model)
    embedded, self.masks = self._runner.embed_all(images, size)
    # Per micro-batch, the streams that are kept, by the block after them.
    self._at = [{0: x} for x in embedded]
    devices = images.placement.mesh.size
    each = sum(x.nbytes for x in embedded) / devices / GIB
    most = max(int(memory_gib / each), 2)
    # Every so many blocks, and the ones that were asked for last.
    self._stride = -(-(model.depth + 1) // (most - 1))

  def before(self, position: int) -> Iterator[Array]:
    """The streams before a block, or after the last one for the depth.

    Yields `[batch, tokens, embed]` of one micro-batch after the other; those that
    nobody asks for are not computed.
    """
    for kept in self._at:
      start = max(at for at in kept if at <= position)
      x = kept[start]
      for index in range(start, position):
        x = self._run(self._runner, index, x)
        kept[index + 1] = x
        self._forget(kept, index)
      for index in [at for at in kept if at != position]:
        self._forget(kept, index)
      yield x

  def _forget(self, kept: dict[int, Array], index: int) -> None:
    if index % self._stride:
      kept.pop(index, None)

  def between(
    self, position: int, model: Model | None = None, first: int = 0
  ) -> Iterator[Array]:
    """The streams between the halves of a block, one micro-batch at a time.

    Args:
      position: of the block.
      model: another network, the same as this one before the block `first`.
      first: a block of both, not after `position`.
    """
    runner = self._runner if model is None else self._runner_of(model)
    first = position if model is None else first
    for x in self.before(first):
      for index in range(first, position):
        x = self._run(runner, index, x)
      yield runner.run_attention(position, x)

  def block(self, position: int) -> tuple[EncoderBlock, Params]:
    """A block, and its parameters on the devices."""
    return self._runner.block(position)

  def outputs_of(
    self, model: Model, first: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features of all images through another network.

    Args:
      model: the same as this one before the block `first`.
      first: a block of both, or the depth.

    Returns:
      `[images, num_classes]` and `[images, embed]`, on every process.
    """
    runner = self._runner_of(model)
    # The tokens that nothing reads any more are not computed.
    first = min(first, max(model.module.last_mixing_block, 0))
    found = []
    for x, mask in zip(self.before(first), self.masks, strict=True):
      for index in range(first, model.depth):
        x = self._run(runner, index, x, narrow=True)
      *values, rows = map(
        np.asarray, _read_out(*runner.stem, x, mask, runner.placement)
      )
      found.append([value[rows] for value in values])
    logits, features = zip(*found, strict=True)
    return np.concatenate(logits), np.concatenate(features)

  def _runner_of(self, model: Model) -> BlockRunner:
    return BlockRunner(model, self.placement)

  def _run(
    self, runner: BlockRunner, index: int, x: Array, narrow: bool = False
  ) -> Array:
    self.blocks_run += x.shape[0]
    module = runner.module
    read = None
    if narrow and index >= module.last_mixing_block:
      read = module.read_tokens
    return _run_block(
      *runner.block(index), x, read_tokens=read, placement=runner.placement
    )

  def change(self, model: Model, first: int) -> None:
    """Goes on with another network, the same before the block `first`."""
    self.model = model
    self._runner = self._runner_of(model)
    self._at = [
      {at: x for at, x in kept.items() if at <= first} for kept in self._at
    ]
