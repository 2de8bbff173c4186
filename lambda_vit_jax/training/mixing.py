"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) inside the step.

As in timm's batch mode, one draw serves the whole batch, and image i is mixed
with image batch - 1 - i; or each group of images is such a batch, as where
every device draws for its own part.
"""

from typing import Any

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
  group_size: int | None = None,
) -> tuple[Array, Array]:
  """Mixes images and targets with those of the reversed batch, or group.

  Targets are weighted by the share of pixels that come from each image, so
  every row keeps its sum. The result is a function of `key`.

  Args:
    images: `[batch, height, width, channels]`.
    targets: `[batch, num_classes]` probabilities, smoothed or not.
    key: a JAX random key.
    mixup_alpha: the weight of the first image is drawn from Beta(alpha,
      alpha); 0 for no mixup.
    cutmix_alpha: the same for the area that cutmix keeps of it.
    prob: probability that the batch is mixed at all.
    switch_prob: probability of cutmix if both are on.
    group_size: images that share a draw and mix with each other; the whole
      batch by default, and if it is no larger; else it must divide it.

  Returns:
    Images and targets of the same shapes and dtypes.
  """
  if not mixup_alpha and not cutmix_alpha:
    return images, targets
  if group_size is not None and group_size < len(images):

    def mix_group(images: Array, targets: Array, key: Array) -> Any:
      chances = (mixup_alpha, cutmix_alpha, prob, switch_prob)
      return mix(images, targets, key, *chances)

    number = len(images) // group_size
    groups = [
      x.reshape(number, group_size, *x.shape[1:]) for x in (images, targets)
    ]
    found = jax.vmap(mix_group)(
      groups[0], groups[1], jax.random.split(key, number)
    )
    return found[0].reshape(images.shape), found[1].reshape(targets.shape)
  height, width = images.shape[-3:-1]
  keys = jax.random.split(key, 5)
  # Weight of the first image per pixel, and its mean.
  weights: Array = jnp.ones((1, 1), jnp.float32)
  if mixup_alpha:
    weights = jax.random.beta(keys[0], mixup_alpha, mixup_alpha, (1, 1))
  share = weights[0, 0]
  if cutmix_alpha:
    kept = jax.random.beta(keys[1], cutmix_alpha, cutmix_alpha)
    outside = (~box_mask(keys[2], height, width, kept)).astype(jnp.float32)
    cut = not mixup_alpha or jax.random.bernoulli(keys[3], switch_prob)
    weights = jnp.where(cut, outside, weights)
    share = jnp.where(cut, outside.mean(), share)
  mixed = jax.random.bernoulli(keys[4], prob)
  return (
    _blend(images, jnp.where(mixed, weights, 1.0)[..., None]),
    _blend(targets, jnp.where(mixed, share, 1.0)),
  )


def _blend(values: Array, weight: Array) -> Array:
  weight = weight.astype(values.dtype)
  return weight * values + (1 - weight) * values[::-1]


def box_mask(key: Array, height: int, width: int, kept: Array) -> Array:
  """Draws the box of cutmix; True inside.

  The box has the aspect ratio of the image and, before it is clipped at the
  border, about `1 - kept` of its area. Its centre is uniform over the pixels.

  Args:
    key: a JAX random key.
    height: of the image.
    width: of the image.
    kept: scalar in [0, 1], share of the area outside of the box.

  Returns:
    `[height, width]` bool.
  """
  ratio = jnp.sqrt(1.0 - kept)
  row_key, column_key = jax.random.split(key)

  def inside(key: Array, length: int) -> Array:
    cut = (length * ratio).astype(jnp.int32)
    centre = jax.random.randint(key, (), 0, length)
    index = jnp.arange(length)
    return (index >= centre - cut // 2) & (index < centre + (cut + 1) // 2)

  return inside(row_key, height)[:, None] & inside(column_key, width)
