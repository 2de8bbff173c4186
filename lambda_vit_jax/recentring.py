"""Norms that are shown again what the dense network showed them (METHOD 6).

Where attentions are left out or replaced, all that follows is fed a stream of
other means and spreads. Two streams are carried from block to block, the dense
network's and the modified one's, and scale and bias of every norm behind the
first change are set so that each channel leaves the norm with the mean and the
variance that it has in the dense network: in sequence, so that a later norm is
corrected for what the earlier ones have become. Labels are not used.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax import compilation, entropy, programs
from lambda_vit_jax.entropy import ChannelStatistics, Moments
from lambda_vit_jax.errors import ModelError
from lambda_vit_jax.images import ImageSet, Placement, read_images
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.surgery import block_name
from lambda_vit_jax.typing import Array, Params

Streams = Sequence[Array]
"""A stream `[batch, tokens, embed]` per micro-batch."""


def recentre(
  model: Model,
  dense: Model,
  batches: Iterable[Array | Mapping[str, Array]],
  *,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> Model:
  """`model` with norms corrected towards the network that it was made of.

  Args:
    model: finished (no block `diluted` or `skip`), not folded; left as it is.
    dense: the same before attentions were replaced or left out.
    batches: an iterable of normalised NHWC arrays or of dicts with `image`
      (and `mask`), without labels.
    memory_gib: working memory per device, beside two streams of the images,
      which are kept on the devices.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    `model` with other `scale` and `bias` in the norms behind the first block
    in which the two differ; float32 arrays `[embed]` on the host.

  Raises:
    ModelError: models of which one was not made of the other.
    DataError: no image, or images of another shape.
  """
  shape = (*model.module.image_size, model.module.in_chans)
  return recentre_on(
    model, dense, read_images(batches, shape, mesh), memory_gib
  )


def recentre_on(
  model: Model, dense: Model, images: ImageSet, memory_gib: float | None = None
) -> Model:
  """`recentre`, on images that were read."""
  _check(model, dense)
  modes = zip(model.attention_modes, dense.attention_modes, strict=True)
  changed = [index for index, (a, b) in enumerate(modes) if a != b]
  if not changed:
    return model
  size = programs.micro_batch_size(dense.module, images, memory_gib)
  batches = list(images.micro_batches(size))
  masks = [batch['mask'] for batch in batches]
  there = _Network(dense, images.placement)
  here = _Network(model, images.placement)

  def correct(
    params: Params, name: str, x: Streams, y: Streams, view: _View
  ) -> Params:
    """`params` with their norm `name` corrected, given what it reads."""
    found = (
      _statistics(streams, masks, view, images.placement) for streams in (x, y)
    )
    return params | {name: corrected(params[name], *found)}

  module = model.module
  y = there.embed([batch['image'] for batch in batches])
  for index in range(changed[0]):
    y = there.mlp(index, there.attention(index, y))
  x = y
  for index in range(changed[0], model.depth):
    epsilon, name = module.norm_eps[index], block_name(index)
    block = here.params[name]
    if model.attention_modes[index] == 'full':
      block = correct(block, 'norm1', x, y, _View(epsilon))
      here.put({name: block})
    x, y = here.attention(index, x), there.attention(index, y)
    last = index == model.depth - 1
    seen = _View(epsilon, stop=module.read_tokens if last else None)
    here.put({name: correct(block, 'norm2', x, y, seen)})
    x, y = here.mlp(index, x), there.mlp(index, y)
  view = _View(
    module.norm_eps[-1],
    start=0 if module.pooling == 'token' else module.num_prefix_tokens,
    stop=module.read_tokens,
    pool=not module.norm_before_pool and module.pooling != 'token',
  )
  norm = 'norm' if module.norm_before_pool else 'fc_norm'
  return model.replace(params=correct(here.params, norm, x, y, view))


def corrected(
  norm: Params, here: ChannelStatistics, there: ChannelStatistics
) -> Params:
  """Scale and bias that give `here` the moments that `there` has.

  Args:
    norm: `scale` and `bias` `[embed]` of the dense network.
    here: of n(x) as it is now; channels that do not vary keep their scale.
    there: of n(x) in the dense network.
  """
  dead = entropy.dead_channels(here.mean, here.std)
  ratio = np.where(dead, 1.0, there.std / np.where(dead, 1.0, here.std))
  old = {k: np.asarray(v, np.float64) for k, v in norm.items()}
  scale = old['scale'] * ratio
  bias = old['bias'] + old['scale'] * there.mean - scale * here.mean
  new = {'scale': scale, 'bias': bias}
  return {k: np.asarray(v, np.float32) for k, v in new.items()}


def _check(model: Model, dense: Model) -> None:
  for one in (model, dense):
    if one.module.quantization != 'none':
      raise ModelError(
        'the model is quantised; correct its norms first, or dequantize(model)'
      )
    if {'diluted', 'skip'} & set(one.attention_modes):
      raise ModelError(
        f'the blocks are in modes {list(one.attention_modes)}; norms are '
        'corrected in a finished model'
      )
  for field in _SHARED:
    if getattr(model.module, field) == getattr(dense.module, field):
      continue
    raise ModelError(
      f'the two models differ in {field}: give the dense model that the other '
      'was made of, and no folded one'
    )


# What two networks agree in of which one was made of the other.
_SHARED = (
  'depth',
  'embed_dim',
  'image_size',
  'patch_size',
  'norm_eps',
  'pooling',
  'norm_before_pool',
)


@dataclasses.dataclass(frozen=True)
class _View:
  """What a norm reads of a stream; static.

  Attributes:
    epsilon: of the norm.
    start: the first token.
    stop: the token behind the last, None for all.
    pool: whether the norm reads the mean of these tokens.
  """

  epsilon: float
  start: int = 0
  stop: int | None = None
  pool: bool = False


@compilation.jit(static_argnames=('view', 'placement'))
def _moments(
  x: Array, mask: Array, view: _View, placement: Placement
) -> Moments:
  """Moments of n(x), channel by channel, of images and tokens."""
  x = x[:, view.start : view.stop]
  if view.pool:
    x = x.mean(axis=1)
  found = entropy.moments_of(normalize(x, view.epsilon), mask)
  return jax.lax.with_sharding_constraint(found, placement.replicated)


def _statistics(
  streams: Streams, masks: Sequence[Array], view: _View, placement: Placement
) -> ChannelStatistics:
  return functools.reduce(
    entropy.merge_host,
    (
      entropy.to_host(_moments(x, mask, view, placement))
      for x, mask in zip(streams, masks, strict=True)
    ),
  ).pooled()


@compilation.jit(static_argnames=('block', 'placement'))
def _attend(
  block: EncoderBlock, params: Params, x: Array, placement: Placement
) -> Array:
  """The stream between the halves of a block."""
  found = pieces.run_block(block, params, x)[1]['after_attention']
  return jax.lax.with_sharding_constraint(found, placement.batch)


class _Network:
  """A network that runs half a block at a time."""

  def __init__(self, model: Model, placement: Placement):
    self.params: dict[str, Any] = dict(model.params)
    self._model = model
    self._place = placement
    self._placed = placement.replicate(self.params)

  def put(self, changed: Params) -> None:
    """Takes new parameters for some of its parts."""
    self.params |= changed
    self._placed |= self._place.replicate(changed)

  def embed(self, images: Sequence[Array]) -> Streams:
    """The first stream."""
    stem = pieces.stem_of(self._model.module)
    outer = pieces.stem_params(self._placed, self._model.depth)
    return [
      programs.embed(stem, outer, image, self._place)[0] for image in images
    ]

  def attention(self, index: int, streams: Streams) -> Streams:
    """The first half of a block."""
    mode = self._model.attention_modes[index]
    if mode == 'absent':
      return streams
    if mode == 'identity':
      return [2.0 * x for x in streams]
    block = pieces.block_of(self._model.module, index, mode)
    params = pieces.block_params(self._placed, index)
    return [_attend(block, params, x, self._place) for x in streams]

  def mlp(self, index: int, streams: Streams) -> Streams:
    """The second half."""
    block = pieces.block_of(self._model.module, index, 'absent')
    params = pieces.mlp_params(self._placed, index)
    one = np.float32(1.0)
    return [
      programs.pass_by(block, params, x, one, self._place) for x in streams
    ]
