"""Segmentation scores against scikit-learn, and sums of hits in NumPy."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from lambda_vit_jax.core.preprocessing import IGNORED
from lambda_vit_jax.evaluation import confusion, counts
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.training import losses

CLASSES = 4


def draw(seed, shape=(3, 5, 7)):
  rng = np.random.default_rng(seed)
  labels = rng.integers(IGNORED, CLASSES, shape).astype(np.int32)
  logits = rng.normal(size=(*shape, CLASSES)).astype(np.float32)
  return labels, logits


@given(st.integers(0, 2**32 - 1))
def test_the_matrix_is_scikit_learns(seed):
  labels, logits = draw(seed)
  predicted = logits.argmax(-1)
  found = confusion.confusion_matrix(labels, predicted, CLASSES)
  assert found.dtype == np.int64
  valid = labels != IGNORED
  expected = metrics.confusion_matrix(
    labels[valid], predicted[valid], labels=range(CLASSES)
  )
  np.testing.assert_array_equal(found, expected)


@given(st.integers(0, 2**32 - 1))
def test_scores_are_scikit_learns(seed):
  labels, logits = draw(seed)
  # Two classes that may occur in one of both, or in none.
  labels = np.where(labels > 1, IGNORED, labels)
  predicted = np.minimum(logits.argmax(-1), 2)
  found = confusion.scores(
    confusion.confusion_matrix(labels, predicted, CLASSES)
  )
  valid = labels != IGNORED
  truth, guess = labels[valid], predicted[valid]
  there = sorted({*truth.tolist(), *guess.tolist()})
  each = metrics.jaccard_score(truth, guess, labels=there, average=None)
  assert [found['iou'][k] for k in there] == pytest.approx(each.tolist())
  assert found['iou'][3] is None
  assert found['mean_iou'] == pytest.approx(each.mean())
  assert found['pixel_accuracy'] == pytest.approx(
    metrics.accuracy_score(truth, guess)
  )
  assert found['num_pixels'] == valid.sum()


def test_nothing_scores_nothing():
  found = confusion.scores(np.zeros((2, 2), np.int64))
  assert (found['mean_iou'], found['pixel_accuracy']) == (0.0, 0.0)
  assert found['iou'] == [None, None]


def test_counts_on_the_mesh_are_exact():
  """Split over eight devices, padded, and the same integers."""
  labels, logits = draw(0, (16, 3, 5))
  mask = np.arange(16) < 13
  mesh = sharding.make_mesh()
  batch = sharding.put_batch(
    {'logits': logits, 'labels': labels, 'mask': mask}, mesh
  )
  found = jax.jit(counts.pixel_counts)(
    batch['logits'], batch['labels'], batch['mask']
  )
  expected = confusion.confusion_matrix(
    labels[:13], logits[:13].argmax(-1), CLASSES
  )
  np.testing.assert_array_equal(found['confusion'], expected)
  assert found['images'] == 13
  log = np.log(np.exp(logits).sum(-1))
  right = np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)
  loss = (log - right[..., 0])[:13][labels[:13] != IGNORED].sum()
  # Sums of some 150 float32 numbers in another order.
  np.testing.assert_allclose(found['loss'], loss, rtol=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_ignored_pixels_have_no_loss_and_no_gradient(smoothing):
  labels, logits = draw(1)

  def loss(logits):
    return losses.pixel_cross_entropy(logits, labels, smoothing)

  value, gradient = jax.value_and_grad(loss)(logits)
  assert not np.any(gradient[labels == IGNORED])
  valid = labels != IGNORED
  # The loss of classification over the pixels that have a class.
  expected = losses.cross_entropy(
    logits[valid],
    losses.smooth_one_hot(labels[valid], CLASSES, smoothing),
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_without_labels_loss_and_accuracy_are_0():
  labels, logits = draw(1)
  nothing = np.full_like(labels, IGNORED)
  assert losses.pixel_cross_entropy(logits, nothing) == 0.0
  assert losses.accuracy(logits, nothing) == 0.0
  assert losses.accuracy(logits, logits.argmax(-1)) == 1.0


def test_classes_that_no_true_pixel_has_are_missing():
  # Class 1 is predicted only, class 3 occurs nowhere.
  matrix = np.array([[5, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]])
  found = confusion.scores(matrix)
  assert found['missing_classes'] == [1, 3]
  assert found['iou'][1:] == [0.0, 1.0, None]
