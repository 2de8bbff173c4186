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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax import compilation, entropy, programs
from lambda_vit_jax.entropy import ChannelStatistics, Moments
from lambda_vit_jax.errors import DataError, ModelError
from lambda_vit_jax.images import ImageSet, Placement, read_images
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.surgery import block_name
from lambda_vit_jax.typing import Array, Params

# The class token is one sample an image: of 32, σ is known within an eighth.
_LEAST_IMAGES = 32


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
      (and `mask`), without labels; 512 images are enough for most networks.
    memory_gib: working memory per device, beside two streams of the images
      (images × tokens × embed numbers each), which are kept on the devices.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    `model` with other `scale` and `bias` in the norms behind the first block
    in which the two differ; float32 arrays `[embed]` on the host.

  Raises:
    ModelError: models that differ in more than their modes, or activations
      that are not finite.
    DataError: fewer than 32 images, or images of another shape.
  """
  shape = (*model.module.image_size, model.module.in_chans)
  return recentre_on(
    model, dense, read_images(batches, shape, mesh), memory_gib
  )


def recentre_on(
  model: Model, dense: Model, images: ImageSet, memory_gib: float | None = None
) -> Model:
  """`recentre`, on images that were read."""
  changed = _changed(model, dense)
  if images.total < _LEAST_IMAGES:
    raise DataError(
      f'{images.total} images are too few to tell the moments of a channel; '
      f'give at least {_LEAST_IMAGES}, better 512'
    )
  if not changed:
    return model
  size = programs.micro_batch_size(dense.module, images, memory_gib)
  there = _Network(dense, images.placement)
  here = _Network(model, images.placement)
  masks = []
  for batch in images.micro_batches(size):
    there.embed(batch['image'])
    here.embed(batch['image'])
    masks.append(batch['mask'])
  for index in range(changed[0]):
    there.run(index)
    here.run(index)

  def correct(params: Params, base: Params, name: str, view: _View) -> Params:
    """`params` with another norm `name`, given that of the dense network."""
    found = (network.statistics(masks, view) for network in (here, there))
    return params | {name: corrected(base[name], *found)}

  module = model.module
  for index in range(changed[0], model.depth):
    epsilon, name = module.norm_eps[index], block_name(index)
    block, base = here.params[name], there.params[name]
    if model.attention_modes[index] == 'full':
      block = correct(block, base, 'norm1', _View(epsilon))
      here.put({name: block})
    here.attention(index)
    there.attention(index)
    # Where no attention follows, other tokens are not computed at all.
    narrow = index >= module.last_mixing_block
    seen = _View(epsilon, stop=module.read_tokens if narrow else None)
    here.put({name: correct(block, base, 'norm2', seen)})
    here.mlp(index)
    there.mlp(index)
  view = _View(
    module.norm_eps[-1],
    start=0 if module.pooling == 'token' else module.num_prefix_tokens,
    stop=module.read_tokens,
    pool=not module.norm_before_pool and module.pooling != 'token',
  )
  norm = 'norm' if module.norm_before_pool else 'fc_norm'
  params = correct(here.params, there.params, norm, view)
  return model.replace(params=params)


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


def _changed(model: Model, dense: Model) -> list[int]:
  """The blocks in which two models differ, which differ in nothing else.

  Raises:
    ModelError: one was not made of the other.
  """
  for one in (model, dense):
    # Refuses what merges tokens or segments.
    pieces.stem_of(one.module)
    if one.module.quantization != 'none':
      raise ModelError(
        'the model is quantised; correct its norms first, or dequantize(model)'
      )
    if {'diluted', 'skip'} & set(one.attention_modes):
      raise ModelError(
        f'the blocks are in modes {list(one.attention_modes)}; norms are '
        'corrected in a finished model'
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
  normal = normalize(x, view.epsilon)
  return programs.pooled_moments(normal, mask, placement)


@compilation.jit(static_argnames=('block', 'placement'))
def _attend(
  block: EncoderBlock, params: Params, x: Array, placement: Placement
) -> Array:
  """The stream between the halves of a block."""
  found = pieces.run_block(block, params, x)[1]['after_attention']
  return jax.lax.with_sharding_constraint(found, placement.batch)


class _Network:
  """A network that runs half a block at a time, on streams that it keeps."""

  def __init__(self, model: Model, placement: Placement):
    self.params: dict[str, Any] = dict(model.params)
    self.streams: list[Array] = []
    self._model = model
    self._place = placement
    self._placed = placement.replicate(self.params)

  def put(self, changed: Params) -> None:
    """Takes new parameters for some of its parts."""
    self.params |= changed
    self._placed |= self._place.replicate(changed)

  def embed(self, images: Array) -> None:
    """Makes the first stream of further images."""
    stem = pieces.stem_of(self._model.module)
    outer = pieces.stem_params(self._placed, self._model.depth)
    x, _ = programs.embed(stem, outer, images, self._place)
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
      params = pieces.block_params(self._placed, index)
      self._advance(lambda x: _attend(block, params, x, self._place))

  def mlp(self, index: int) -> None:
    """The second half."""
    block = pieces.block_of(self._model.module, index, 'absent')
    params = pieces.mlp_params(self._placed, index)
    one = np.float32(1.0)
    self._advance(
      lambda x: programs.pass_by(block, params, x, one, self._place)
    )

  def _advance(self, step: Callable[[Array], Array]) -> None:
    # One after the other: each old stream goes as its new one comes.
    for position, x in enumerate(self.streams):
      self.streams[position] = step(x)

  def statistics(
    self, masks: Sequence[Array], view: _View
  ) -> ChannelStatistics:
    """Per channel, of what a norm makes of the streams before its affine.

    Raises:
      ModelError: activations that are not finite.
    """
    found = functools.reduce(
      entropy.merge_host,
      (
        entropy.to_host(_moments(x, mask, view, self._place))
        for x, mask in zip(self.streams, masks, strict=True)
      ),
    ).pooled()
    if not np.isfinite([found.mean, found.std]).all():
      raise ModelError(
        'activations are NaN or infinite; check the weights, the dtype and how '
        'the images are normalised'
      )
    return found
