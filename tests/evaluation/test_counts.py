"""Sums of correct predictions and losses of a batch, against NumPy."""

import jax
import numpy as np
import pytest

from lambda_vit_jax.evaluation import accuracy, counts


def in_numpy(logits, labels, mask):
  """The same sums by sorting every row."""
  order = np.argsort(-logits, axis=1)
  rank = (order == labels[:, None]).argmax(axis=1)
  shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
  log_sum = np.log(np.exp(shifted).sum(axis=1))
  loss = log_sum - shifted[np.arange(len(labels)), labels]
  return {
    'correct1': ((rank < 1) & mask).sum(),
    'correct5': ((rank < 5) & mask).sum(),
    'loss': loss[mask].sum(),
    'images': mask.sum(),
  }


@pytest.mark.parametrize('classes', [2, 4, 5, 6, 30])
def test_counts_are_those_of_sorted_rows(classes, rng):
  logits = rng.normal(size=(200, classes)).astype(np.float32)
  labels = rng.integers(0, classes, 200)
  mask = rng.random(200) < 0.7
  found = jax.device_get(counts.evaluation_counts(logits, labels, mask))
  expected = in_numpy(logits, labels, mask)
  for name in ('correct1', 'correct5', 'images'):
    assert found[name] == expected[name], name
  # A float32 sum of 140 numbers.
  np.testing.assert_allclose(found['loss'], expected['loss'], rtol=1e-5)
  if classes <= 5:
    assert found['correct5'] == found['images']
  else:
    assert found['correct1'] < found['correct5'] < found['images']


def test_a_split_is_the_sum_of_its_batches(rng):
  """Padded rows and the cut into batches change nothing."""
  logits = rng.normal(size=(50, 30)).astype(np.float32)
  labels = rng.integers(0, 30, 50)
  mask = np.arange(50) < 43
  parts = [
    counts.evaluation_counts(logits[rows], labels[rows], mask[rows])
    for rows in np.split(np.arange(50), [20, 40])
  ]
  found = accuracy.summarize(parts)
  expected = in_numpy(logits, labels, mask)
  assert found['num_images'] == 43
  assert found['top1'] == expected['correct1'] / 43
  assert found['top5'] == expected['correct5'] / 43
  np.testing.assert_allclose(found['loss'], expected['loss'] / 43, rtol=1e-5)
