"""Run a network block by block: `BlockRunner`, for searches, profiles and fits.

A stream is the activations of one micro-batch between blocks, `[batch, tokens,
embed]`. The jitted functions take parameters as arguments and blocks that are
equal as modules share a program, so that the number of programs depends
neither on the depth nor on how often a block runs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lambda_vit_jax.analysis import moments
from lambda_vit_jax.analysis.images import AXIS, ImageSet, Placement
from lambda_vit_jax.analysis.memory import micro_batch_size
from lambda_vit_jax.analysis.moments import Moments
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import Array, AttentionMode, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.map_inputs import inputs_of_map
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import MODES
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation


@compilation.jit(exact=True, static_argnames=('stem', 'placement'))
def embed(
  stem: ViT, params: Params, images: Array, placement: Placement
) -> tuple[Array, Array]:
  """The first stream, and the tokens of it that the readout reads."""
  x = pieces.embed(stem, params, images)
  return jax.lax.with_sharding_constraint(
    (x, x[:, : stem.read_tokens]), placement.batch
  )


@compilation.jit(exact=True, static_argnames=('block', 'placement', 'tap'))
def run_block(
  block: EncoderBlock,
  params: Params,
  x: Array,
  placement: Placement,
  tap: str = 'output',
) -> Array:
  """A block on all tokens, in mode `full` or `linear`, up to an intermediate."""
  output = pieces.run_block(block, params, x)[1][tap]
  return jax.lax.with_sharding_constraint(output, placement.batch)


@compilation.jit(exact=True, static_argnames=('block', 'placement'))
def run_mlp(
  block: EncoderBlock,
  params: Params,
  x: Array,
  residual_scale: Array,
  placement: Placement,
) -> Array:
  """The MLP half on `residual_scale · x`: a block without attention."""
  x = residual_scale.astype(x.dtype) * x
  output, _ = pieces.run_block(block, params, x)
  return jax.lax.with_sharding_constraint(output, placement.batch)


class BlockRunner:
  """A model whose blocks run one at a time, or half of one.

  Every method leaves the stream that it is given alone. `removed` asks for a
  block without its attention: replaced by its affine map if `use_maps` gave
  one, else left out (mode `absent`).

  Attributes:
    module: of the model, in float32 (`in_float32`).
    placement: devices of the streams.
    params: of the model, on these devices.
  """

  def __init__(self, model: Model, placement: Placement):
    """Copies the parameters of a model without diluted blocks to the devices.

    Raises:
      ModelError: the model merges tokens or segments.
    """
    self.module = in_float32(model).module
    self.placement = placement
    self.params: dict[str, Any] = dict(placement.replicate(model.params))
    self._stem = pieces.stem_of(self.module)
    self._maps: dict[int, Params] = {}

  @property
  def stem(self) -> tuple[ViT, Params]:
    """The module without blocks, and its parameters."""
    return self._stem, pieces.stem_params(self.params, self.module.depth)

  def update(self, changed: Params) -> None:
    """Replaces some top-level entries of the parameters."""
    self.params |= self.placement.replicate(changed)

  def use_maps(self, maps: Mapping[int, Params]) -> None:
    """Sets the affine maps that replace the attention of removed blocks.

    Per block the parameters of its `attn` in mode `linear`; a removed block
    that has none is run without attention.
    """
    self._maps = {
      index: {'attn': self.placement.replicate(fitted)}
      for index, fitted in maps.items()
    }

  def mode(self, index: int, removed: bool = False) -> AttentionMode:
    """The mode in which a block runs."""
    if not removed:
      return self.module.attention_modes[index]
    return 'linear' if index in self._maps else 'absent'

  def block(
    self, index: int, removed: bool = False
  ) -> tuple[EncoderBlock, Params]:
    """A block in its mode, and the parameters of this mode."""
    if not removed:
      params = pieces.block_params(self.params, index)
      return pieces.block_of(self.module, index, self.mode(index)), params
    if index not in self._maps:
      return self.mlp(index)
    params = pieces.mlp_params(self.params, index) | self._maps[index]
    module = self.module.clone(linear_inputs=inputs_of_map(params['attn']))
    return pieces.block_of(module, index, 'linear'), params

  def mlp(self, index: int) -> tuple[EncoderBlock, Params]:
    """The MLP half of a block, and its parameters."""
    block = pieces.block_of(self.module, index, 'absent')
    return block, pieces.mlp_params(self.params, index)

  def embed(self, images: Array) -> tuple[Array, Array]:
    """The first stream, and the tokens of it that the readout reads."""
    return embed(*self.stem, images, self.placement)

  def embed_all(
    self, images: ImageSet, size: int
  ) -> tuple[list[Array], list[Array]]:
    """The first streams of all micro-batches of a size, and their masks."""
    streams: list[Array] = []
    masks: list[Array] = []
    for batch in images.micro_batches(size):
      streams.append(self.embed(batch['image'])[0])
      masks.append(batch['mask'])
    return streams, masks

  def run(self, index: int, x: Array, removed: bool = False) -> Array:
    """A whole block."""
    mode = MODES[self.mode(index, removed)]
    if mode.adds_nothing:
      scale = np.float32(mode.scales()[0])
      return run_mlp(*self.mlp(index), x, scale, self.placement)
    return run_block(*self.block(index, removed), x, self.placement)

  def run_attention(self, index: int, x: Array) -> Array:
    """The first half of a block, in its own mode."""
    mode = MODES[self.mode(index)]
    if mode.adds_nothing:
      scale, _ = mode.scales()
      return x if scale == 1.0 else scale * x
    block = self.block(index)
    return run_block(*block, x, self.placement, tap='after_attention')

  def run_mlp(self, index: int, x: Array) -> Array:
    """The second half of a block."""
    return run_mlp(*self.mlp(index), x, np.float32(1.0), self.placement)


def in_float32(model: Model) -> Model:
  """The model that computes in float32, or wider.

  What is measured or solved for is: in bfloat16, rounding moves scores by as much
  as their intervals are wide, and the moments of a fit as much.
  """
  if jnp.finfo(model.module.dtype).bits >= 32:
    return model
  return model.replace(module=model.module.clone(dtype=jnp.float32))


def check_finished(model: Model, purpose: str) -> None:
  """Refuses a model whose dilution has begun, for a `purpose` like `a fit`."""
  for index, mode in enumerate(model.attention_modes):
    if mode in ('diluted', 'skip'):
      raise ModelError(
        f'block {index} is in mode {mode!r}; {purpose} starts from full, '
        'identity, absent or linear blocks'
      )


def advance(streams: list[Array], step: Callable[[Array], Array]) -> None:
  """Replaces each stream by `step` of it, in place.

  One after the other: an old stream is freed as soon as its successor exists.
  """
  for position, x in enumerate(streams):
    streams[position] = step(x)


@compilation.jit(exact=True, static_argnames=('block', 'measure', 'placement'))
def _run_and_measure(
  block: EncoderBlock,
  params: Params,
  x: Array,
  mask: Array,
  *,
  measure: Callable[..., Any],
  placement: Placement,
) -> tuple[Array, Any]:
  x, taps = pieces.run_block(block, params, x)
  measured = measure(taps, mask, placement)
  return jax.lax.with_sharding_constraint(x, placement.batch), measured


def measure_blocks(
  model: Model,
  images: ImageSet,
  measure: Callable[[dict[str, Array], Array, Placement], Any],
  memory_gib: float | None = None,
) -> Iterator[tuple[int, Any]]:
  """Runs all images through the blocks and yields what `measure` returns.

  Args:
    model: no block in mode `diluted`.
    images: see `images.read_images`.
    measure: traceable and hashable; takes a block's intermediates, the mask
      `[batch]` and the placement to any tree.
    memory_gib: activations held at a time, per device.

  Yields:
    The block's index and the tree, per micro-batch and block.
  """
  runner = BlockRunner(model, images.placement)
  size = micro_batch_size(runner.module, images, memory_gib)
  for batch in images.micro_batches(size):
    x, _ = runner.embed(batch['image'])
    for index in range(model.depth):
      x, measured = _run_and_measure(
        *runner.block(index),
        x,
        batch['mask'],
        measure=measure,
        placement=images.placement,
      )
      yield index, measured


def pooled_moments(
  features: Array, mask: Array, placement: Placement
) -> Moments:
  """Moments of `[batch, ..., channels]` split over the devices; traceable."""
  split = PartitionSpec(AXIS)
  return jax.shard_map(
    lambda f, m: moments.merge_over_axis(moments.moments_of(f, m), AXIS),
    mesh=placement.mesh,
    in_specs=(split, split),
    out_specs=PartitionSpec(),
  )(features, mask)
