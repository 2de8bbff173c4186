"""What changes between two models, from their answers."""

import numpy as np
import pytest

from lambda_vit_jax.evaluation import changes, confusion

LABELS = np.array([0, 0, 1, 1, 2, 2, -1, -1])
BEFORE = np.array([0, 0, 1, 2, 2, 0, 0, 1])
AFTER = np.array([0, 1, 1, 1, 2, 1, 1, 0])
NAMES = ('cat', 'dog', 'owl')


def answers_of(predicted):
  """In two batches, the last of which has padding."""
  found = changes.Answers()
  for part in (slice(0, 4), slice(4, 8)):
    found.add(predicted[part], LABELS[part])
  return found


@pytest.fixture(scope='module')
def described():
  others = {'dense': answers_of(BEFORE), 'baseline': answers_of(AFTER)}
  return changes.describe(answers_of(AFTER), others, NAMES)


def test_padding_is_no_image(described):
  """Its rows differ in every way, and would add two images."""
  assert described['changed']['gained'] == 1
  assert described['changed']['lost'] == 1
  assert [row['index'] for row in described['changed']['images']] == [1, 3, 5]


def test_images_that_were_lost_come_first_and_wrong_ones_count(described):
  assert described['changed']['images'] == [
    {'index': 1, 'label': 'cat', 'before': 'cat', 'after': 'dog'},
    {'index': 3, 'label': 'dog', 'before': 'owl', 'after': 'dog'},
    {'index': 5, 'label': 'owl', 'before': 'cat', 'after': 'dog'},
  ]


def test_classes_without_a_change_are_left_out(described):
  assert described['changed']['classes'] == [
    {'class': 'cat', 'images': 2, 'lost': 1, 'gained': 0},
    {'class': 'dog', 'images': 2, 'lost': 0, 'gained': 1},
  ]


def test_the_interval_is_that_of_paired_images(described):
  """Not that of two shares: equal answers have no width."""
  change, width = described['difference']['dense']
  assert change == 0.0
  # One up and one down of six: a variance of 1/3 over six images.
  assert width == pytest.approx(1.96 * np.sqrt(1 / 3 / 6))
  assert described['difference']['baseline'] == [0.0, 0.0]


def random_areas(rng, images, classes):
  """Of a model and of another that is a little worse on the same images."""
  union = rng.integers(50, 400, (images, classes))
  share = rng.uniform(0.5, 0.9, (images, classes))
  worse = share - rng.uniform(0.0, 0.2, (images, classes))
  return tuple(
    np.stack([(part * union).astype(int), union], axis=1)
    for part in (share, worse)
  )


def test_the_interval_of_iou_is_that_of_resampled_images(rng):
  ours, other = random_areas(rng, 60, 5)
  change, width = changes.iou_difference(ours, other)

  def mean(areas):
    correct, union = areas.sum(axis=0)
    return np.mean(correct / union)

  assert change == pytest.approx(mean(ours) - mean(other))
  draws = rng.integers(0, 60, (4000, 60))
  drawn = np.std([mean(ours[k]) - mean(other[k]) for k in draws])
  # Of 4,000 draws, 4 standard errors of a standard deviation; and the terms of
  # second order, a sixtieth.
  assert width == pytest.approx(1.96 * drawn, rel=0.045 + 1 / 60)


def test_the_interval_of_iou_over_equal_unions_is_that_of_means(rng):
  """A mean of ratios with one denominator, so a mean over images."""
  correct = rng.integers(0, 100, (2, 40, 3))
  ours, other = (
    np.stack([part, np.full((40, 3), 100)], axis=1) for part in correct
  )
  change, width = changes.iou_difference(ours, other)
  moved = (correct[0] - correct[1]).mean(axis=1) / 100
  assert change == pytest.approx(moved.mean())
  assert width == pytest.approx(1.96 * moved.std(ddof=1) / np.sqrt(40))


def test_a_class_that_one_image_decides_has_a_wide_interval(rng):
  """Of a class of no true pixel one is predicted: by chance or not?"""
  ours, _ = random_areas(rng, 100, 3)
  empty = np.zeros((100, 2, 1), int)
  ours = np.concatenate([ours, empty], axis=2)
  other = ours.copy()
  other[17, 1, 3] = 1
  change, width = changes.iou_difference(ours, other)
  # Three classes or four, of which the last has an IoU of 0.
  assert change == pytest.approx(confusion.mean_iou(ours.sum(axis=0)) / 4)
  # One of 100 differences is near zero: 99/100 · change² in a jackknife.
  assert width == pytest.approx(1.96 * 0.99 * change, rel=0.01)


def test_classes_that_never_occur_and_equal_answers_have_no_part(rng):
  ours, other = random_areas(rng, 10, 3)
  empty = np.zeros((10, 2, 1), int)
  more = [np.concatenate([part, empty], axis=2) for part in (ours, other)]
  found = changes.iou_difference(ours, other)
  assert changes.iou_difference(*more) == pytest.approx(found)
  assert changes.iou_difference(ours, ours) == (0.0, 0.0)
  assert changes.iou_difference(empty, empty) == (0.0, 0.0)


def test_lists_are_bounded_whatever_the_size_of_the_test_set():
  labels = np.arange(5000)
  before, after = changes.Answers(), changes.Answers()
  before.add(labels, labels)
  after.add((labels + 1) % 5000, labels)
  found = changes.describe(after, {'dense': before}, ())['changed']
  assert found['lost'] == 5000
  assert len(found['images']) == changes.MOST_IMAGES
  assert len(found['classes']) == changes.MOST_CLASSES


def test_without_an_image_nothing_is_said():
  none = changes.Answers()
  none.add(np.zeros(2, int), np.full(2, -1))
  assert changes.describe(none, {'dense': none}, NAMES) == {}
