"""The streams of a set of images before every block of a network that changes.

A trial that differs from the network from a block on starts from the streams
before that block. They are kept on the devices, for as many blocks as the memory
allows, and computed again from the last ones that are there. A fit that needs no
more samples leaves the later micro-batches where they are.

Where tokens merge, a stream comes with the number of patches in each token.
"""

from collections.abc import Iterator
from typing import NamedTuple

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


class Stream(NamedTuple):
  """A micro-batch between two blocks.

  Attributes:
    x: `[batch, tokens, embed]`.
    sizes: patches in each token, `[batch, tokens]`; None for one each.
  """

  x: Array
  sizes: Array | None = None


class _Runner(BlockRunner):
  """A runner whose blocks may merge tokens."""

  def __init__(self, model: Model, placement: Placement):
    unmerged = model.replace(module=model.module.clone(merge=()))
    super().__init__(unmerged, placement)
    self._merged = model.module.merge_counts

  def block(
    self, index: int, removed: bool = False
  ) -> tuple[EncoderBlock, Params]:
    block, params = super().block(index, removed)
    return block.clone(merge=self._merged[index]), params


@compilation.jit(
  exact=True, static_argnames=('block', 'read_tokens', 'placement')
)
def _run_block(
  block: EncoderBlock,
  params: Params,
  stream: Stream,
  *,
  read_tokens: int | None,
  placement: Placement,
) -> Stream:
  x, sizes = stream
  output, taps = pieces.run_block(block, params, x, read_tokens, sizes)
  found = Stream(output, taps.get('sizes'))
  return jax.lax.with_sharding_constraint(found, placement.batch)


@compilation.jit(exact=True, static_argnames=('stem', 'placement'))
def _read_out(
  stem: ViT, params: Params, stream: Stream, mask: Array, placement: Placement
) -> tuple[Array, Array, Array]:
  """Logits, features and mask of a micro-batch, on every device."""
  logits, taps = pieces.readout(stem, params, *stream)
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
      model: without decoder or unfinished dilution.
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
    self._at = [{0: Stream(x)} for x in embedded]
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
    return (stream.x for stream in self._before(position))

  def _before(self, position: int) -> Iterator[Stream]:
    for kept in self._at:
      start = max(at for at in kept if at <= position)
      stream = kept[start]
      for index in range(start, position):
        stream = self._run(self._runner, index, stream)
        kept[index + 1] = stream
        self._forget(kept, index)
      for index in [at for at in kept if at != position]:
        self._forget(kept, index)
      yield stream

  def _forget(self, kept: dict[int, Stream], index: int) -> None:
    if index % self._stride:
      kept.pop(index, None)

  def between(
    self, position: int, model: Model | None = None, first: int = 0
  ) -> Iterator[Array]:
    """The streams between the halves of a block, one micro-batch at a time.

    No tokens merge in either network.

    Args:
      position: of the block.
      model: another network, the same as this one before the block `first`.
      first: a block of both, not after `position`.
    """
    runner = self._runner if model is None else self._runner_of(model)
    first = position if model is None else first
    for stream in self._before(first):
      for index in range(first, position):
        stream = self._run(runner, index, stream)
      yield runner.run_attention(position, stream.x)

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
    for stream, mask in zip(self._before(first), self.masks, strict=True):
      for index in range(first, model.depth):
        stream = self._run(runner, index, stream, narrow=True)
      *values, rows = map(
        np.asarray, _read_out(*runner.stem, stream, mask, runner.placement)
      )
      found.append([value[rows] for value in values])
    logits, features = zip(*found, strict=True)
    return np.concatenate(logits), np.concatenate(features)

  def _runner_of(self, model: Model) -> _Runner:
    return _Runner(model, self.placement)

  def _run(
    self, runner: _Runner, index: int, stream: Stream, narrow: bool = False
  ) -> Stream:
    self.blocks_run += stream.x.shape[0]
    module = runner.module
    read = None
    if narrow and index >= module.last_mixing_block:
      read = module.read_tokens
    return _run_block(
      *runner.block(index),
      stream,
      read_tokens=read,
      placement=runner.placement,
    )

  def change(self, model: Model, first: int) -> None:
    """Goes on with another network, the same before the block `first`."""
    self.model = model
    self._runner = self._runner_of(model)
    self._at = [
      {at: stream for at, stream in kept.items() if at <= first}
      for kept in self._at
    ]
