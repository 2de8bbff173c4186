"""Closed forms of the losses, and counts that padding cannot change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_vit_jax.evaluation import counts
from lambda_vit_jax.training import losses


def test_smoothed_targets_sum_to_one():
  targets = losses.smooth_one_hot(jnp.array([0, 3]), 5, 0.1)
  np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=1e-6)
  np.testing.assert_allclose(targets[1, 3], 0.9 + 0.1 / 5, rtol=1e-6)


def test_cross_entropy_of_uniform_logits_is_log_classes():
  targets = losses.smooth_one_hot(jnp.arange(4), 4, 0.0)
  loss = losses.cross_entropy(jnp.zeros((4, 4)), targets)
  np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)


@pytest.mark.parametrize('kind', ['soft', 'hard'])
def test_no_gradient_reaches_the_teacher(kind, rng):
  logits = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
  gradient = jax.grad(
    lambda teacher: losses.distillation_loss(logits, teacher, kind, 2.0)
  )(logits + 1.0)
  assert not np.any(gradient)


def test_soft_distillation_of_equal_logits_is_zero(rng):
  logits = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
  # A difference of equal float32 numbers, summed over four classes.
  assert abs(losses.distillation_loss(logits, logits, 'soft', 3.0)) < 1e-6


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


def test_no_gradient_reaches_the_features_of_the_teacher(rng):
  features = jnp.asarray(rng.normal(size=(3, 24)), jnp.float32)
  student, teacher = jax.grad(losses.feature_distillation_loss, argnums=(0, 1))(
    features, features[::-1]
  )
  assert np.any(student)
  assert not np.any(teacher)


@given(st.integers(0, 5))
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
  assert exact['correct1'] == (logits[:6].argmax(-1) == labels[:6]).sum()
