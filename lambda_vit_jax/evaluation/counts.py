"""Sums over a batch: correct predictions, losses and confusion matrices."""

import jax
import jax.numpy as jnp
import optax

from lambda_vit_jax.core.preprocessing import IGNORED
from lambda_vit_jax.core.typing import Array


def pixel_counts(logits: Array, labels: Array, mask: Array) -> dict[str, Array]:
  """Sums over the labelled pixels of the images that `mask` keeps.

  Args:
    logits: `[batch, height, width, classes]`.
    labels: `[batch, height, width]` int, `IGNORED` where a pixel has no class.
    mask: `[batch]` bool, False for padding.

  Returns:
    `confusion` int32 `[classes, classes]`, true by predicted class, exact up
    to 2^31 pixels; `loss`, a float32 sum; `images`, int32.
  """
  classes = logits.shape[-1]
  valid = (labels != IGNORED) & mask[:, None, None]
  loss = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(valid, labels, 0)
  )
  cells = labels.astype(jnp.int32) * classes
  cells += logits.argmax(axis=-1).astype(jnp.int32)
  cells = jnp.where(valid, cells, classes**2).reshape(-1)
  counts = jnp.zeros(classes**2 + 1, jnp.int32).at[cells].add(1)
  return {
    'confusion': counts[:-1].reshape(classes, classes),
    'loss': jnp.where(valid, loss, 0.0).sum(),
    'images': mask.sum(dtype=jnp.int32),
  }


def evaluation_counts(
  logits: Array, labels: Array, mask: Array
) -> dict[str, Array]:
  """Sums over the images that `mask` keeps; padding is not counted.

  Args:
    logits: `[batch, classes]`.
    labels: `[batch]` int.
    mask: `[batch]` bool, False for padding.

  Returns:
    `correct1`, `correct5`, `images` as int32 and `loss` as float32 sums; top
    5 means top `classes` if there are fewer than 5.
  """
  scores = image_scores(logits, labels)
  return {
    'correct1': (scores['correct1'] & mask).sum(dtype=jnp.int32),
    'correct5': (scores['correct5'] & mask).sum(dtype=jnp.int32),
    'loss': jnp.where(mask, scores['loss'], 0.0).sum(),
    'images': mask.sum(dtype=jnp.int32),
  }


def predicted_counts(
  logits: Array, labels: Array, mask: Array
) -> dict[str, Array]:
  """`evaluation_counts`, and what each image of the batch was taken for.

  Returns:
    Also `predicted` and `label`, `[batch]` int32; the label of padding is -1.
  """
  _, best = jax.lax.top_k(logits, 1)
  return evaluation_counts(logits, labels, mask) | {
    'predicted': best[:, 0],
    'label': jnp.where(mask, labels, -1),
  }


def image_scores(logits: Array, labels: Array) -> dict[str, Array]:
  """Of each image `correct1` and `correct5`, bool, and `loss`, float32 nats.

  Args:
    logits: `[batch, classes]`.
    labels: `[batch]` int.
  """
  _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
  hits = best == labels[:, None]
  return {
    'correct1': hits[:, 0],
    'correct5': hits.any(axis=-1),
    'loss': optax.softmax_cross_entropy_with_integer_labels(logits, labels),
  }
