"""The streams of a network being modified, and of the dense one it aims at.

As long as the two are the same network, they share one list of streams.
"""

import functools
from collections.abc import Iterator, Sequence

import jax

from lambda_vit_jax.analysis.blocks import BlockRunner, advance
from lambda_vit_jax.analysis.images import ImageSet, Placement
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.runtime import compilation

Halves = tuple[Array, Array, Array]
"""Of a micro-batch: the network's stream before a block, the reference's there or
after its attention half, and the mask `[batch]`."""


@compilation.jit(
  exact=True, static_argnames=('block', 'with_output', 'placement')
)
def attention_half(
  block: EncoderBlock,
  params: Params,
  x: Array,
  *,
  with_output: bool,
  placement: Placement,
) -> tuple[Array, Array | None]:
  """The stream after a block's attention and, `with_output`, after the block."""
  output, taps = pieces.run_block(block, params, x)
  halves = taps['after_attention'], output if with_output else None
  return jax.lax.with_sharding_constraint(halves, placement.batch)


class StreamPair:
  """All images, before the same block of both networks.

  Attributes:
    here: streams of the modified network, one per micro-batch.
    masks: of the micro-batches, `[batch]`, False for padding.
  """

  def __init__(
    self,
    runner: BlockRunner,
    images: ImageSet,
    size: int,
    *,
    own: bool,
    dense: BlockRunner | None = None,
    origins: Sequence[int] = (),
  ):
    """Embeds the images.

    Args:
      runner: of the modified network.
      images: see `images.read_images`.
      size: images of a micro-batch.
      own: whether a block's reference is its own attention, on the modified
        network's stream, instead of the dense network.
      dense: where that is another model than the one of `runner`.
      origins: per block, which one of the dense network it was; None for the
        same.
    """
    self.here, self.masks = runner.embed_all(images, size)
    self._runner, self._own = runner, own
    self._dense, self._there = runner, self.here
    if dense is not None and not own:
      self._dense = dense
      self._there = dense.embed_all(images, size)[0]
    self._origins = origins or range(runner.module.depth)
    self._placement = images.placement
    # Blocks that the reference has run.
    self._done = 0

  def run(self, index: int) -> None:
    """Runs a block as it is."""
    advance(self.here, functools.partial(self._runner.run, index))
    if self._there is self.here:
      self._done = index + 1

  def run_map(self, index: int) -> None:
    """Runs a block with the map that the runner has for it."""
    advance(self.here, functools.partial(self._runner.run, index, removed=True))

  def before(self, index: int) -> Iterator[Halves]:
    """Yields the streams before a block: the network's, the reference's, mask."""
    origin = self._origins[index]
    for earlier in range(self._done, origin):
      advance(self._there, functools.partial(self._dense.run, earlier))
    self._done = max(self._done, origin)
    yield from zip(self.here, self._there, self.masks, strict=True)

  def reference(self, index: int) -> tuple[EncoderBlock, Params]:
    """The reference's block for a block of the network, and its parameters."""
    return self._dense.block(self._origins[index])

  def halves(self, index: int, stays: bool) -> Iterator[Halves]:
    """Yields the halves of each micro-batch, then moves its streams.

    The reference runs the block. So does the modified network if the block
    `stays`; otherwise it waits for `run_map`.
    """
    shared = self._there is self.here
    outputs = []
    for position, (x, reference, mask) in enumerate(self.before(index)):
      wanted, output = attention_half(
        *self.reference(index),
        reference,
        with_output=stays or not self._own,
        placement=self._placement,
      )
      yield x, wanted, mask
      outputs.append(output)
      if stays:
        self.here[position] = output if shared else self._runner.run(index, x)
      if not shared:
        self._there[position] = output
      del x, reference, wanted
    self._done = self._origins[index] + 1
    if shared and not stays and not self._own:
      self._there = outputs
