"""Closed forms of the losses; padding does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_vit_jax.core.preprocessing import IGNORED
from lambda_vit_jax.evaluation import counts
from lambda_vit_jax.training import losses


def log_softmax(logits):
  """In float64."""
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def divergence(teacher, student):
  """KL(teacher ‖ student) of softmax, mean over rows, in float64."""
  teacher, student = log_softmax(teacher), log_softmax(student)
  return (np.exp(teacher) * (teacher - student)).sum(-1).mean()


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.5])
def test_smoothed_targets_in_full(smoothing):
  targets = losses.smooth_one_hot(jnp.array([0, 3]), 5, smoothing)
  expected = (1 - smoothing) * np.eye(5)[[0, 3]] + smoothing / 5
  np.testing.assert_allclose(targets, expected, rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_of_random_logits(smoothing, rng):
  logits = 3 * rng.normal(size=(6, 4)).astype(np.float32)
  labels = rng.integers(0, 4, 6).astype(np.int32)
  targets = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
  expected = -(targets * log_softmax(logits)).sum(-1).mean()
  found = losses.cross_entropy(logits, targets.astype(np.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  found = losses.label_loss(logits, labels, smoothing)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_cross_entropy_of_pixels(smoothing, rng):
  # Sides of different lengths, so that no other axis can pass for the classes.
  logits = 3 * rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
  labels = rng.integers(0, 4, (2, 3, 5)).astype(np.int32)
  labels[0, :, :2] = IGNORED
  targets = (1 - smoothing) * np.eye(4)[np.maximum(labels, 0) % 4]
  terms = -((targets + smoothing / 4) * log_softmax(logits)).sum(-1)
  expected = terms[labels != IGNORED].mean()
  found = losses.pixel_cross_entropy(logits, labels, smoothing)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  found = losses.label_loss(logits, labels, smoothing)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('kind', ['soft', 'hard'])
def test_no_gradient_reaches_the_teacher(kind, rng):
  # Unlike the student: at equal logits the divergence is flat anyway.
  student, teacher = rng.normal(size=(2, 3, 4)).astype(np.float32)
  gradients = jax.grad(
    lambda s, t: losses.distillation_loss(s, t, kind, 2.0), argnums=(0, 1)
  )(student, teacher)
  assert np.any(gradients[0])
  assert not np.any(gradients[1])


@pytest.mark.parametrize('temperature', [1.0, 2.0, 4.0])
def test_soft_distillation_is_the_divergence_from_the_teacher(temperature, rng):
  student, teacher = 2 * rng.normal(size=(2, 5, 4)).astype(np.float32)
  found = losses.distillation_loss(student, teacher, 'soft', temperature)
  scaled = teacher / temperature, student / temperature
  expected = temperature**2 * divergence(*scaled)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # The divergence is not symmetric: student and teacher cannot be swapped.
  swapped = temperature**2 * divergence(*scaled[::-1])
  assert abs(found - swapped) > 0.01


def test_hard_distillation_is_cross_entropy_with_the_teachers_class(rng):
  student, teacher = rng.normal(size=(2, 5, 4)).astype(np.float32)
  found = losses.distillation_loss(student, teacher, 'hard', 7.0)
  classes = teacher.argmax(-1)
  expected = -log_softmax(student)[np.arange(5), classes].mean()
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_accuracy_counts_the_labelled_ones():
  logits = np.float32([[0, 1], [1, 0], [0, 1], [0, 1]])
  labels = np.int32([1, 1, 1, IGNORED])
  assert losses.accuracy(logits, labels) == np.float32(2 / 3)


def test_feature_distillation_is_one_minus_the_correlation(rng):
  student, teacher = rng.normal(size=(2, 6, 24)).astype(np.float32)
  loss = losses.feature_distillation_loss(student, teacher)
  correlation = [
    np.corrcoef(s, t)[0, 1] for s, t in zip(student, teacher, strict=True)
  ]
  # The epsilon of the whitening, 1e-6 against variances of about 1.
  np.testing.assert_allclose(loss, 2 * (1 - np.mean(correlation)), rtol=1e-5)


def test_feature_distillation_ignores_scale_and_offset(rng):
  features = rng.normal(size=(3, 24)).astype(np.float32)
  # float32 rounding of an offset of 3, squared.
  assert losses.feature_distillation_loss(features, 4 * features + 3) < 1e-9
  opposite = losses.feature_distillation_loss(features, -features)
  np.testing.assert_allclose(opposite, 4.0, rtol=1e-5)


@pytest.mark.parametrize('class_token', [True, False])
def test_streams_are_compared_token_by_token(rng, class_token):
  ours, theirs = rng.normal(size=(2, 3, 4, 5, 24)).astype(np.float32)
  loss = losses.stream_distillation_loss(list(ours), list(theirs), class_token)
  # Of 3 streams of 4 images and 5 tokens.
  pairs = zip(ours.reshape(-1, 24), theirs.reshape(-1, 24), strict=True)
  distances = np.reshape(
    [2 * (1 - np.corrcoef(a, b)[0, 1]) for a, b in pairs], (3, 4, 5)
  )
  expected = distances.mean()
  if class_token:
    expected = 0.5 * (expected + distances[:, :, 0].mean())
  # The epsilon of the variance, 1e-6 against variances of about 1.
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_no_gradient_reaches_the_streams_of_the_teacher(rng):
  streams = jnp.asarray(rng.normal(size=(3, 4, 24)), jnp.float32)
  student, teacher = jax.grad(losses.stream_distillation_loss, argnums=(0, 1))(
    [streams], [streams[::-1]]
  )
  assert np.any(student[0])
  assert not np.any(teacher[0])


def test_no_gradient_reaches_the_features_of_the_teacher(rng):
  features = jnp.asarray(rng.normal(size=(3, 24)), jnp.float32)
  student, teacher = jax.grad(losses.feature_distillation_loss, argnums=(0, 1))(
    features, features[::-1]
  )
  assert np.any(student)
  assert not np.any(teacher)


@given(st.integers(1, 5))
def test_padding_counts_for_nothing(padding):
  rng = np.random.default_rng(padding)
  logits = rng.normal(size=(6 + padding, 7)).astype(np.float32)
  labels = rng.integers(0, 7, 6 + padding).astype(np.int32)
  mask = np.arange(6 + padding) < 6
  padded = counts.evaluation_counts(logits, labels, mask)
  exact = counts.evaluation_counts(logits[:6], labels[:6], mask[:6])
  for name in ('correct1', 'correct5', 'images'):
    assert padded[name] == exact[name]
  np.testing.assert_allclose(padded['loss'], exact['loss'], rtol=1e-6)
  logits, labels = logits[:6], labels[:6]
  ranked = np.argsort(-logits, axis=-1)
  assert exact['images'] == 6
  assert exact['correct1'] == (ranked[:, 0] == labels).sum()
  assert exact['correct5'] == (ranked[:, :5] == labels[:, None]).any(-1).sum()
  expected = -log_softmax(logits)[np.arange(6), labels].sum()
  np.testing.assert_allclose(exact['loss'], expected, rtol=1e-6)
