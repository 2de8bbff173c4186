"""Recalibrate LayerNorm scale and bias to the dense model's channel statistics.

Without some attention layers, the stream has other means and variances. Both
models run block by block on the same images, and scale and bias of every norm
after the first change are set so that each channel leaves the norm with the
mean and variance that it has in the dense model. Norms are corrected in
sequence, each on the model as corrected so far. Labels are not used.
"""

import dataclasses
import functools

import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis import blocks, moments
from lambda_vit_jax.analysis.images import (
  Batches,
  ImageSet,
  Placement,
  read_images,
)
from lambda_vit_jax.analysis.moments import ChannelStatistics, Moments
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import MODES, block_name
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free import paired
from lambda_vit_jax.training_free.least_squares import require_finite


@check_arguments
def recentre(
  model: Model,
  dense: Model,
  batches: Batches,
  *,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> Model:
  """`model` with norms recalibrated to those of the dense model.

  Args:
    model: finished (no block `diluted` or `skip`), not folded; not changed.
    dense: the model before attention layers were replaced or left out, or
      blocks dropped.
    batches: an iterable of normalised NHWC arrays, or what else
      `images.read_images` takes; labels are not used. 512 images are enough
      for most networks.
    memory_gib: working memory per device, beside two streams of the images
      (images × tokens × embed numbers each), which are kept on the devices.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    `model` with other `scale` and `bias` in the norms after the first block in
    which the two differ; float32 arrays `[embed]` on the host.

  Raises:
    ModelError: models that differ in more than modes, blocks and widths, or
      activations that are not finite.
    DataError: fewer than 32 images, or images of another shape.
  """
  images = read_images(batches, model, mesh)
  return recentre_on(model, dense, images, memory_gib)


def recentre_on(
  model: Model, dense: Model, images: ImageSet, memory_gib: float | None = None
) -> Model:
  """`recentre`, on images that were read."""
  pairing = paired.pair(model, dense)
  paired.check_images(images, 'measure the moments of a channel')
  if pairing.first_short == model.depth:
    return model
  first = pairing.first
  here, there = paired.at_block(model, dense, images, first, memory_gib)

  def correct(
    params: Params, base: Params, name: str, view: _View, where: str
  ) -> Params:
    """`params` with a corrected norm `name`; `base` is of the dense model."""
    found = (_statistics(network, view, where) for network in (here, there))
    return params | {name: corrected(base[name], *found)}

  module = model.module
  for index in range(first, model.depth):
    origin, where = pairing.origins[index], f'block {index}'
    there.run_to(origin)
    epsilon, name = module.norm_eps[index], block_name(index)
    block = here.params.get(name, {})
    base = there.params.get(block_name(origin), {})
    if MODES[model.attention_modes[index]].has_attention:
      block = correct(block, base, 'norm1', _View(epsilon), where)
      here.update({name: block})
    here.run_attention(index)
    there.run_attention(origin)
    # If no attention follows, no other tokens are computed.
    narrow = index >= module.last_mixing_block
    seen = _View(epsilon, stop=module.read_tokens if narrow else None)
    if module.hidden_dims[index]:
      here.update({name: correct(block, base, 'norm2', seen, where)})
    here.run_mlp(index)
    there.run_mlp(origin)
  there.run_to(dense.depth)
  view = _View(
    module.norm_eps[-1],
    start=0 if module.pooling == 'token' else module.num_prefix_tokens,
    stop=module.read_tokens,
    pool=not module.norm_before_pool and module.pooling != 'token',
  )
  norm = 'norm' if module.norm_before_pool else 'fc_norm'
  params = correct(here.params, there.params, norm, view, 'the output')
  return model.replace(params=params)


def corrected(
  norm: Params, here: ChannelStatistics, there: ChannelStatistics
) -> Params:
  """Scale and bias with which `here` leaves the norm as `there` does.

  Args:
    norm: `scale` and `bias` `[embed]` of the dense model.
    here: statistics of n(x) in the modified model; channels that do not vary
      keep their scale.
    there: statistics of n(x) in the dense model.
  """
  ratio = np.where(
    here.dead, 1.0, there.std / np.where(here.dead, 1.0, here.std)
  )
  old = {k: np.asarray(v, np.float64) for k, v in norm.items()}
  scale = old['scale'] * ratio
  bias = old['bias'] + old['scale'] * there.mean - scale * here.mean
  new = {'scale': scale, 'bias': bias}
  return {k: np.asarray(v, np.float32) for k, v in new.items()}


@dataclasses.dataclass(frozen=True)
class _View:
  """The tokens of a stream that a norm reads, or their mean (`pool`); static."""

  epsilon: float
  start: int = 0
  stop: int | None = None
  pool: bool = False


@compilation.jit(exact=True, static_argnames=('view', 'placement'))
def _moments(
  x: Array, mask: Array, view: _View, placement: Placement
) -> Moments:
  """Moments of n(x) per channel, over images and tokens."""
  x = x[:, view.start : view.stop]
  if view.pool:
    x = x.mean(axis=1)
  normal = normalize(x, view.epsilon)
  return blocks.pooled_moments(normal, mask, placement)


def _statistics(
  network: paired.StreamedModel, view: _View, where: str
) -> ChannelStatistics:
  """Statistics of n(x) per channel, over all streams."""
  parts = (
    moments.to_host(_moments(x, mask, view, network.runner.placement))
    for x, mask in zip(network.streams, network.masks, strict=True)
  )
  found = functools.reduce(moments.merge_host, parts).pooled()
  require_finite(where, found.mean, found.std)
  return found
