"""Mixup and cutmix of a whole batch, on the device, inside the step.

Mixup: arXiv 1710.09412; cutmix: arXiv 1905.04899. One draw serves the batch
and image i is mixed with image batch − 1 − i, as in timm's batch mode.
"""

import jax
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array


def mix(
  images: Array,
  targets: Array,
  key: Array,
  mixup_alpha: float = 0.8,
  cutmix_alpha: float = 1.0,
  prob: float = 1.0,
  switch_prob: float = 0.5,
) -> tuple[Array, Array]:
  """Mixes each image and target with those of the reversed batch.

  Targets are weighted by the share of pixels that come from each image, so
  every row keeps its sum. `key` alone decides everything.

  Args:
    images: `[batch, height, width, channels]`.
    targets: `[batch, num_classes]` probabilities, smoothed or not.
    key: a JAX random key.
    mixup_alpha: mixup's share is drawn from Beta(alpha, alpha); 0 for no
      mixup.
    cutmix_alpha: the same for the box that cutmix leaves standing.
    prob: chance that the batch is mixed at all.
    switch_prob: chance of cutmix where both are possible.

  Returns:
    Images and targets of the same shapes and dtypes.
  """
  if not mixup_alpha and not cutmix_alpha:
    return images, targets
  height, width = images.shape[-3:-1]
  weights, share = _weights(
    key, height, width, mixup_alpha, cutmix_alpha, prob, switch_prob
  )
  return (
    _blend(images, weights[..., None]),
    _blend(targets, share),
  )


def _blend(values: Array, weight: Array) -> Array:
  weight = weight.astype(values.dtype)
  return weight * values + (1 - weight) * values[::-1]


def _weights(
  key: Array,
  height: int,
  width: int,
  mixup_alpha: float,
  cutmix_alpha: float,
  prob: float,
  switch_prob: float,
) -> tuple[Array, Array]:
  """The first image's weight per pixel `[height, width]`, and on average."""
  keys = jax.random.split(key, 5)
  weights: Array = jnp.ones((height, width), jnp.float32)
  if mixup_alpha:
    drawn = jax.random.beta(keys[0], mixup_alpha, mixup_alpha, (1, 1))
    weights = jnp.broadcast_to(drawn.astype(jnp.float32), (height, width))
    share = weights[0, 0]
  if cutmix_alpha:
    standing = jax.random.beta(keys[1], cutmix_alpha, cutmix_alpha)
    outside = ~box_mask(keys[2], height, width, standing)
    if mixup_alpha:
      cut = jax.random.bernoulli(keys[3], switch_prob)
      share = jnp.where(cut, outside.mean(dtype=jnp.float32), share)
      weights = jnp.where(cut, outside.astype(jnp.float32), weights)
    else:
      share = outside.mean(dtype=jnp.float32)
      weights = outside.astype(jnp.float32)
  mixed = jax.random.bernoulli(keys[4], prob)
  return jnp.where(mixed, weights, 1.0), jnp.where(mixed, share, 1.0)


def box_mask(key: Array, height: int, width: int, standing: Array) -> Array:
  """Cutmix's box: True inside.

  The box has the image's proportions and, before it is clipped at the
  border, about `1 − standing` of its area; its centre is uniform over the
  pixels.

  Args:
    key: a JAX random key.
    height: of the image.
    width: of the image.
    standing: scalar in [0, 1], the share to be left standing.

  Returns:
    `[height, width]` bool.
  """
  ratio = jnp.sqrt(1.0 - standing)
  row_key, column_key = jax.random.split(key)

  def inside(key: Array, length: int) -> Array:
    cut = (length * ratio).astype(jnp.int32)
    centre = jax.random.randint(key, (), 0, length)
    place = jnp.arange(length)
    return (place >= centre - cut // 2) & (place < centre + (cut + 1) // 2)

  rows = inside(row_key, height)
  columns = inside(column_key, width)
  return rows[:, None] & columns[None, :]
