"""Training losses and accuracy: pure functions of logits and targets."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from lambda_vit_jax.core.preprocessing import IGNORED
from lambda_vit_jax.core.typing import Array


def smooth_one_hot(labels: Array, num_classes: int, smoothing: float) -> Array:
  """Converts labels `[batch]` int to float32 targets `[batch, num_classes]`.

  A row has `1 - smoothing` at the label plus `smoothing / num_classes`
  everywhere, and sums to 1.
  """
  one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  return optax.smooth_labels(one_hot, smoothing) if smoothing else one_hot


def cross_entropy(logits: Array, targets: Array) -> Array:
  """Mean over the batch of `-Σ targets·log softmax(logits)`, in nats."""
  return optax.softmax_cross_entropy(logits, targets).mean()


def label_loss(logits: Array, labels: Array, smoothing: float) -> Array:
  """Mean cross-entropy with labels per image or per pixel, in nats.

  Args:
    logits: `[batch, classes]` or `[batch, height, width, classes]`.
    labels: int, shaped like the logits without their last axis.
    smoothing: share of each target that is spread evenly over all classes.
  """
  if labels.ndim > 1:
    return pixel_cross_entropy(logits, labels, smoothing)
  targets = smooth_one_hot(labels, logits.shape[-1], smoothing)
  return cross_entropy(logits, targets)


def pixel_cross_entropy(
  logits: Array, labels: Array, smoothing: float = 0.0
) -> Array:
  """Mean cross-entropy over the labelled pixels, in nats.

  Args:
    logits: `[batch, height, width, classes]` float32.
    labels: `[batch, height, width]` int; `IGNORED` pixels do not count.
    smoothing: share of each target that is spread evenly over all classes.
  """
  valid = labels != IGNORED
  loss = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(valid, labels, 0)
  )
  if smoothing:
    uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
    loss = (1.0 - smoothing) * loss + smoothing * uniform
  total = jnp.where(valid, loss, 0.0).sum()
  return total / jnp.maximum(valid.sum(), 1).astype(total.dtype)


def accuracy(logits: Array, labels: Array) -> Array:
  """Share of labels that the largest logit predicts; skips `IGNORED` ones."""
  hits = (logits.argmax(axis=-1) == labels).sum(dtype=jnp.float32)
  valid = (labels != IGNORED).sum(dtype=jnp.float32)
  return hits / jnp.maximum(valid, 1.0)


def distillation_loss(
  logits: Array, teacher_logits: Array, kind: str, temperature: float
) -> Array:
  """Distillation loss of a student's logits (DeiT, arXiv 2012.12877).

  Args:
    logits: of the student, `[batch, classes]`.
    teacher_logits: `[batch, classes]`; no gradient flows into them.
    kind: `soft` for temperature² · KL(teacher ‖ student) of the softmax at
      `temperature`, `hard` for cross-entropy with the teacher's prediction.
    temperature: of `soft`.

  Returns:
    The mean over the batch, in nats.
  """
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  if kind == 'hard':
    labels = teacher_logits.argmax(axis=-1)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()
  teacher = jax.nn.log_softmax(teacher_logits / temperature)
  student = jax.nn.log_softmax(logits / temperature)
  divergence = (jnp.exp(teacher) * (teacher - student)).sum(axis=-1)
  return divergence.mean() * temperature**2


def feature_distillation_loss(
  features: Array, teacher_features: Array
) -> Array:
  """Scale-free distance between the features of student and teacher.

  Each feature vector f of d channels is normalized as by LayerNorm without
  affine, n(f) = (f - mean f) / sqrt(var f + 1e-6), as in feature distillation
  (arXiv 2205.14141). The loss is the mean over the batch of

    1/d Σ_c (n(s)_c - n(t)_c)² = 2 (1 - correlation(s, t)),

  which is between 0 and 4. Doubling the stream, as dilution does, costs
  nothing, and a pruned student has its teacher's width, so that no projector
  is needed.

  Args:
    features: of the student, pooled after the final norm, `[batch, embed]`.
    teacher_features: the same shape; no gradient flows into them.
  """
  teacher_features = jax.lax.stop_gradient(teacher_features)
  difference = _normalize(features) - _normalize(teacher_features)
  return (difference**2).mean()


def stream_distillation_loss(
  streams: Sequence[Array],
  teacher_streams: Sequence[Array],
  class_token: bool = True,
) -> Array:
  """Scale-free distance between the streams of student and teacher.

  The distance of two tokens is that of `feature_distillation_loss`. The loss is
  half its mean over all tokens and half that of the class token, on average over
  the pairs of streams; it is between 0 and 4.

  Args:
    streams: of the student, each `[batch, tokens, embed]`.
    teacher_streams: one for each, of the same shape; no gradient flows into
      them.
    class_token: whether the first token is one; without, the loss is the mean
      over all tokens.
  """
  total = jnp.zeros(())
  for ours, theirs in zip(streams, teacher_streams, strict=True):
    theirs = jax.lax.stop_gradient(theirs)
    distances = ((_normalize(ours) - _normalize(theirs)) ** 2).mean(axis=-1)
    mean = distances.mean()
    if class_token:
      mean = 0.5 * (mean + distances[:, 0].mean())
    total = total + mean
  return total / len(streams)


def _normalize(features: Array) -> Array:
  features = features.astype(jnp.float32)
  centred = features - features.mean(axis=-1, keepdims=True)
  variance = (centred**2).mean(axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + 1e-6)
