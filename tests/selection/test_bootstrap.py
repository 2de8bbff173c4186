"""The bootstrap against repeated samples, and against known errors."""

import numpy as np
import pytest

from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.moments import HostMoments
from lambda_vit_jax.selection import bootstrap
from lambda_vit_jax.selection.record import Round


def by_shard(samples):
  """Moments of `[shards, images, channels]`."""
  images = samples.shape[1]
  return HostMoments(
    np.full(len(samples), float(images)),
    samples.mean(axis=1),
    samples.var(axis=1) * images,
  )


def test_resampled_statistics_are_those_of_repeated_samples(rng):
  samples = rng.normal(size=(4, 6, 3)) + 100.0
  weights = np.asarray([[1, 1, 1, 1], [0, 3, 1, 0]])
  mean, std = bootstrap.resampled_statistics(by_shard(samples), weights)
  drawn = np.concatenate([samples[1], samples[1], samples[1], samples[2]])
  np.testing.assert_allclose(mean[1], drawn.mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(std[1], drawn.std(axis=0), rtol=1e-9)
  np.testing.assert_allclose(
    std[0], samples.reshape(-1, 3).std(axis=0), rtol=1e-9
  )


def test_resampled_entropy_is_that_of_repeated_samples(rng):
  samples = rng.normal(size=(4, 6, 3)) * (1.0, 2.0, 3.0)
  weights = np.asarray([[2, 0, 1, 1]])
  drawn = np.concatenate([samples[0], samples[0], samples[2], samples[3]])
  exclude = np.asarray([False, True, False])
  found = bootstrap.resampled_entropy(by_shard(samples), weights, exclude)
  expected = entropy.gaussian_entropy(drawn.std(axis=0), exclude)
  np.testing.assert_allclose(found, [expected], rtol=1e-9)


def test_weights_draw_every_shard_equally_often():
  weights = bootstrap.resample_weights(8, 4000, seed=1)
  assert weights.shape == (4000, 8)
  assert (weights.sum(axis=1) == 8).all()
  # A count has deviation √(7/8); of 4,000 the mean, 0.015.
  np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.07)
  np.testing.assert_allclose(weights.var(axis=0), 7 / 8, atol=0.1)
  again = bootstrap.resample_weights(8, 4000, seed=1)
  np.testing.assert_array_equal(weights, again)
  other = bootstrap.resample_weights(8, 4000, seed=2)
  assert (weights != other).any()


@pytest.mark.parametrize('shards, resamples', [(1, 10), (10, 1), (0, 10)])
def test_nothing_to_resample(shards, resamples):
  assert bootstrap.resample_weights(shards, resamples, seed=0) is None


def test_two_shards_and_two_resamples_are_enough():
  weights = bootstrap.resample_weights(2, 2, seed=0)
  assert weights.shape == (2, 2)
  assert (weights.sum(axis=1) == 2).all()


def test_the_error_of_a_mean_is_the_analytic_one(rng):
  samples = rng.normal(5.0, 2.0, size=(400, 20, 1))
  weights = bootstrap.resample_weights(400, 2000, seed=0)
  mean, _ = bootstrap.resampled_statistics(by_shard(samples), weights)
  # σ/√n. 400 shards and 2,000 resamples know it to 4%.
  assert mean.std() == pytest.approx(2.0 / 8000**0.5, rel=0.12)


def test_the_error_of_an_entropy_is_the_analytic_one(rng):
  samples = rng.normal(size=(400, 20, 6)) * np.arange(1.0, 7.0)
  weights = bootstrap.resample_weights(400, 2000, seed=0)
  found = bootstrap.resampled_entropy(
    by_shard(samples), weights, np.zeros(6, bool)
  )
  # Var(log σ) of a normal channel is 1/2n; six channels are independent.
  assert found.std() == pytest.approx((6 / (2 * 8000)) ** 0.5, rel=0.12)


@pytest.fixture
def three(rng):
  """Scores and resamples of a close pair, 4 and 9, and one far off."""
  scores = {4: 0.5, 7: 50.0, 9: 0.0}
  resampled = {
    block: rng.normal(score, 1.0, 500) for block, score in scores.items()
  }
  return scores, resampled


# So many that Student's t is the normal distribution.
MANY = 10**6


def certainty(scores, resampled, chosen, shards=MANY, **options):
  row = Round(scores, chosen, 0.0)
  return bootstrap.certainty(row, resampled, shards, **options)


def same_choice(row):
  return np.unpackbits(np.frombuffer(bytes.fromhex(row.agreeing), np.uint8))


def test_candidates_that_cannot_be_told_apart_are_named(three):
  found = certainty(*three, chosen=9, num_images=100)
  assert found.indistinguishable == (4,)
  assert 0.5 < same_choice(found)[:500].mean() < 0.8
  scores, resampled = three
  alike = (resampled[9] < resampled[4]) & (resampled[9] < resampled[7])
  np.testing.assert_array_equal(same_choice(found)[:500], alike)
  low, high = found.intervals[7]
  assert low == pytest.approx(48.0, abs=0.2)
  assert high == pytest.approx(52.0, abs=0.2)
  assert found.intervals[9] == pytest.approx((-1.96, 1.96), abs=0.2)
  assert found.intervals.keys() == scores.keys()
  # A distance of 0.5 with a deviation of √2: 100·(1.96·√2/0.5)² images.
  assert found.suggested_images == pytest.approx(3073, rel=0.2)


def test_absolute_scores_are_compared_by_magnitude(three):
  scores, resampled = three
  mirrored = certainty(
    {block: -score - 20.0 for block, score in scores.items()},
    {block: -values - 20.0 for block, values in resampled.items()},
    chosen=9,
    num_images=100,
    sign='absolute',
  )
  plain = certainty(scores, resampled, chosen=9, num_images=100)
  # −(s + 20) is ordered by magnitude as s is by value.
  assert mirrored.indistinguishable == plain.indistinguishable
  assert mirrored.suggested_images == plain.suggested_images
  np.testing.assert_array_equal(same_choice(mirrored), same_choice(plain))
  # Intervals are of the scores themselves.
  low, high = plain.intervals[7]
  assert mirrored.intervals[7] == pytest.approx((-high - 20.0, -low - 20.0))


def test_equal_candidates_are_never_told_apart(three):
  _, resampled = three
  found = certainty(
    {4: 1.0, 7: 1.0}, {4: resampled[4], 7: resampled[4]}, 4, num_images=100
  )
  assert found.indistinguishable == (7,)
  assert found.suggested_images is None


@pytest.mark.parametrize(
  'shards, quantile', [(2, 12.706), (11, 2.228), (32, 2.0395), (MANY, 1.96)]
)
def test_an_interval_allows_for_few_shards(shards, quantile):
  """The quantiles are those of printed tables of Student's t."""
  correction = (shards / (shards - 1)) ** 0.5
  assert bootstrap.half_width(shards) == pytest.approx(
    quantile * correction, rel=1e-4
  )


def test_all_of_a_round_uses_the_width_of_its_shards(three):
  """Intervals, who is told apart, and how many images would be needed."""
  scores, resampled = three
  resampled = resampled | {7: resampled[9] + 3.0 + np.linspace(-3.0, 3.0, 500)}
  scores = scores | {7: 3.0}
  many, few = (
    certainty(scores, resampled, 9, shards, num_images=100)
    for shards in (MANY, 4)
  )
  wider = bootstrap.half_width(4) / bootstrap.half_width(MANY)
  for block, (low, high) in few.intervals.items():
    assert (low + high) / 2 == pytest.approx(scores[block])
    narrow = np.subtract(*many.intervals[block])
    assert low - high == pytest.approx(wider * narrow)
  # Block 7 is 3 away, with a deviation of √3: 1.96 of them, but not 3.67.
  assert (
    7
    not in certainty(
      scores,
      {**resampled, 7: resampled[9] + 3.0 + np.linspace(-2, 2, 500)},
      9,
      num_images=100,
    ).indistinguishable
  )
  assert few.indistinguishable == (4, 7)
  assert few.suggested_images == pytest.approx(
    wider**2 * many.suggested_images, rel=1e-3
  )


def test_magnitudes_are_compared_by_their_own_spread(rng):
  """Scores of opposite sign that drift apart are of equal distance to zero."""
  drift = rng.normal(0.0, 0.2, 500)
  found = certainty(
    {4: 1.5, 9: -1.0},
    {4: 1.5 - drift, 9: -1.0 + drift},
    chosen=9,
    num_images=100,
    sign='absolute',
  )
  assert found.indistinguishable == ()
  # No more than the two images that any deviation needs.
  assert found.suggested_images == 2
