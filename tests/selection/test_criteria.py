"""Scores of each criterion against what they are defined as."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.plain_loop import plain_loop
from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.analysis.moments import HostMoments
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.selection import bootstrap, criteria
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.selection.record import Round
from tests.support.search_models import labelled_batches, make_images

IMAGES = make_images(130)


def test_loss_increase_is_that_of_full_forwards(model):
  batches = labelled_batches(IMAGES)
  found = nose(model, batches, criterion='loss_increase', num_layers=1)

  images = read_images(batches, model)
  variants = ((), (0,), (1,), (2,), (3,))
  exact = {
    variant: moments.pooled().mean[0]
    for variant, moments in plain_loop(
      model, images, variants, 'loss', micro_batch=130, one_program=True
    ).items()
  }
  for block, value in found.rounds[0].scores.items():
    assert value == pytest.approx(exact[block,] - exact[()], abs=1e-5)
  assert found.base_entropy is None


@pytest.mark.parametrize(
  'criterion, order', [('first', (0, 1)), ('last', (3, 2))]
)
def test_by_position(model, criterion, order):
  assert nose(model, None, 2, criterion=criterion).order == order


def test_given_keeps_its_order(model):
  given = nose(model, None, criterion='given', layers=(3, 0), num_layers=1)
  assert given.order == (3, 0)
  assert given.num_samples == 0


def test_random_depends_on_the_seed_alone(model):
  def draw(seed):
    return nose(model, None, 2, criterion='random', seed=seed).order

  assert len({frozenset(draw(seed)) for seed in range(20)}) > 3
  assert draw(3) == draw(3)


def test_cosine_takes_the_attention_that_changes_least(model):
  params = jax.tree.map(np.array, model.params)
  projection = params['block02']['attn']['proj']
  projection['kernel'][:] = 0.0
  projection['bias'][:] *= 1e-3
  quiet = model.replace(params=params)
  found = nose(quiet, [IMAGES], criterion='cosine', num_layers=1)
  assert found.order == (2,)
  assert abs(found.rounds[0].scores[2]) < 1e-4


def test_affine_is_what_least_squares_leave(model):
  found = nose(model, [IMAGES], criterion='affine', num_layers=1)
  _, taps = model.apply(IMAGES)
  for block, value in found.rounds[0].scores.items():
    named = taps[f'block{block:02d}']
    inputs, outputs = (
      np.asarray(named[name], np.float64).reshape(-1, 24)
      for name in ('norm1', 'attention')
    )
    inputs = inputs - inputs.mean(axis=0)
    outputs = outputs - outputs.mean(axis=0)
    # The norm's output lies in a hyperplane: what float32 leaves across it is
    # noise, and no part of the fit.
    fit = inputs @ np.linalg.lstsq(inputs, outputs, rcond=1e-4)[0]
    share = ((outputs - fit) ** 2).sum() / (outputs**2).sum()
    # The ridge, and float32 products of 2,210 samples.
    assert value == pytest.approx(share, rel=1e-3)


def test_canonical_is_what_whitened_input_and_output_do_not_share(model):
  found = nose(model, [IMAGES], criterion='canonical', num_layers=1)
  _, taps = model.apply(IMAGES)
  for block, value in found.rounds[0].scores.items():
    named = taps[f'block{block:02d}']
    bases, varying, shaky = [], 0.0, 0.0
    for name in ('norm1', 'attention'):
      rows = np.asarray(named[name], np.float64).reshape(-1, 24)
      vectors, sizes, _ = np.linalg.svd(
        rows - rows.mean(axis=0), full_matrices=False
      )
      # The ridge, 1e-6 of the mean variance, shrinks weak directions.
      ridge = 1e-6 * (sizes**2).mean()
      varying = counted(sizes**2, ridge).sum()
      # Products are float32 and know variances to 1e-7 of the largest.
      error = 1e-7 * (sizes**2).max()
      shaky = (
        counted(sizes**2 + error, ridge) - counted(sizes**2 - error, ridge)
      ).sum()
      bases.append(vectors * (sizes / np.sqrt(sizes**2 + ridge)))
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    expected = varying - (correlations**2).sum()
    # What directions near the ridge count is known no better. All 24 counted
    # alike, the value would be 0.6 to 1 larger in two of the blocks.
    assert value == pytest.approx(expected, abs=min(0.02 + shaky, 0.2))
    assert 0.0 < value < 24.0


def counted(variances, ridge):
  """How much each direction counts."""
  kept = np.maximum(variances, 0.0)
  return kept / (kept + ridge)


@pytest.mark.parametrize('rank, bias', [(0, 0.1), (0, 1e5), (4, 1.0)])
def test_canonical_counts_the_directions_that_vary(model, rank, bias):
  """A layer that adds a constant is chosen first: a map needs only its bias."""
  params = jax.tree.map(np.array, model.params)
  proj = params['block01']['attn']['proj']
  proj['kernel'][:, rank:] = 0.0
  # Numbers whose sums are rounded.
  proj['bias'][:] = bias * np.linspace(0.1, 1.0, 24)
  found = nose(
    model.replace(params=params), [IMAGES], criterion='canonical', num_layers=1
  )
  scores = found.rounds[0].scores
  # Rounding of a constant, and the ridge of a millionth.
  assert 0.0 <= scores[1] <= rank + 1e-3
  assert found.removed == (1,)


@pytest.mark.parametrize('criterion', ['cosine', 'affine', 'canonical'])
def test_a_network_of_nan_is_refused_by_its_block(model, criterion):
  params = jax.tree.map(np.array, model.params)
  params['block01']['attn']['proj']['bias'][3] = np.nan
  with pytest.raises(ModelError, match='block 1: activations are NaN'):
    nose(
      model.replace(params=params), [IMAGES], criterion=criterion, num_layers=1
    )


def test_names_of_inputs_are_checked_and_their_order_does_not_matter(model):
  with pytest.raises(ModelError, match="unknown input 'foo'"):
    nose(model, [IMAGES], inputs=('token', 'foo'), num_layers=1)
  first = nose(
    model, [IMAGES], criterion='output', inputs=('mean', 'token'), num_layers=1
  )
  assert first.inputs == ('token', 'mean')
  # As an earlier version recorded it.
  first = dataclasses.replace(first, inputs=('mean', 'token'))
  found = nose(
    model,
    [IMAGES],
    criterion='output',
    inputs=('token', 'mean'),
    num_layers=2,
    resume=first,
  )
  assert found.order[:1] == first.order


# Scores from given moments, without a network.

NUM_SHARDS = 32


class Recorded:
  """A runner whose moments per shard are given."""

  block_evaluations = 0

  def __init__(self, samples):
    """Takes `[shards, images, channels]` per variant."""
    self.asked = []
    self._samples = samples

  def evaluate(self, variants, on_progress=None):
    self.asked.append(set(variants))
    self.block_evaluations += len(variants)
    return {
      variant: HostMoments(
        np.full(len(samples), float(samples.shape[1])),
        samples.mean(axis=1),
        samples.var(axis=1) * samples.shape[1],
      )
      for variant, samples in self._samples.items()
      if variant in variants
    }


@pytest.fixture
def samples(rng):
  """The base, and trials whose mean and deviation both differ from it."""

  def draw(mean, deviation):
    return mean + deviation * rng.normal(size=(NUM_SHARDS, 50, 1))

  return {
    (): draw(3.0, 1.0),
    (0,): draw(5.0, 1.5),
    (1,): draw(2.0, 0.5),
  }


def definition(score, samples, variant):
  base, trial = (samples[key].reshape(-1, 1) for key in ((), variant))
  if score != 'transfer_entropy':
    return float(trial.mean() - base.mean())
  return float(np.log(base.std() / trial.std()))


SCORES = pytest.mark.parametrize('score', criteria.MEASURED)


@SCORES
def test_scores_have_the_sign_of_their_definition(samples, score):
  scorer = criteria.TrialCriterion(
    score, Recorded(samples), resamples=0, seed=0
  )
  found = scorer((), (0, 1))
  for block in (0, 1):
    expected = definition(score, samples, (block,))
    assert abs(expected) > 0.3
    assert found.values[block] == pytest.approx(expected, rel=1e-9)
  assert found.resampled == {}
  if score == 'transfer_entropy':
    base = entropy.gaussian_entropy(samples[()].reshape(-1, 1).std(axis=0))
    assert found.base_entropy == pytest.approx(base, rel=1e-9)


@SCORES
def test_resamples_scatter_about_the_score(samples, score):
  scorer = criteria.TrialCriterion(
    score, Recorded(samples), resamples=2000, seed=0
  )
  found = scorer((), (0, 1))
  for block in (0, 1):
    resampled = found.resampled[block]
    error = resampled.std()
    assert resampled.mean() == pytest.approx(found.values[block], abs=error)
    # A resample takes the same shards of the base and of the trial: the
    # jackknife, which leaves one shard out at a time, has the same error to
    # first order.
    left_out = [
      definition(
        score,
        {key: np.delete(value, shard, 0) for key, value in samples.items()},
        (block,),
      )
      for shard in range(NUM_SHARDS)
    ]
    jackknife = np.std(left_out) * (NUM_SHARDS - 1) / NUM_SHARDS**0.5
    # 2,000 resamples know their deviation to 1.6%; the jackknife of 32 shards
    # and the bootstrap differ by 1/64.
    assert error == pytest.approx(jackknife, rel=0.08)


def test_the_base_is_measured_once(samples):
  runner = Recorded(samples | {(0, 1): samples[1,]})
  scorer = criteria.TrialCriterion('transfer_entropy', runner, 0, 0)
  first = scorer((), (0, 1))
  second = scorer((1,), (0,))
  assert runner.asked == [{(), (0,), (1,)}, {(0, 1)}]
  assert (first.block_evaluations, second.block_evaluations) == (3, 1)
  assert second.values == {0: first.values[1]}
  assert second.base_entropy == first.base_entropy


@SCORES
def test_shards_without_an_image_are_not_resampled(samples, score):
  """As when there are fewer images than shards."""

  class Sparse(Recorded):
    def evaluate(self, variants, on_progress=None):
      found = super().evaluate(variants, on_progress)
      # Shards without images are in between, as turns are concatenated.
      return {
        variant: HostMoments(
          np.insert(moments.count, (1, 1, 3), 0.0),
          np.insert(moments.mean, (1, 1, 3), 7.0, axis=0),
          np.insert(moments.m2, (1, 1, 3), 0.0, axis=0),
        )
        for variant, moments in found.items()
      }

  few = {variant: values[:5] for variant, values in samples.items()}
  whole, sparse = (
    criteria.TrialCriterion(score, runner(few), 50, 0)((), (0, 1))
    for runner in (Recorded, Sparse)
  )
  assert whole.shards == sparse.shards == 5
  for block in (0, 1):
    assert sparse.values[block] == pytest.approx(whole.values[block])
    np.testing.assert_allclose(sparse.resampled[block], whole.resampled[block])


def test_an_interval_covers_the_true_score(rng):
  """95% of 1,200 searches; ± 1.96 deviations over 32 shards cover 93%."""
  searches, covered = 1200, 0
  for seed in range(searches):
    # As correlated as a network with and without one layer; the score is 0.
    base = rng.normal(size=(NUM_SHARDS, 8, 1))
    trial = 0.8 * base + 0.6 * rng.normal(size=base.shape)
    scorer = criteria.TrialCriterion(
      'transfer_entropy', Recorded({(): base, (0,): trial}), 200, seed
    )
    found = scorer((), (0,))
    row = Round(found.values, 0, 0.0)
    row = bootstrap.certainty(row, found.resampled, found.shards, 256)
    low, high = row.intervals[0]
    covered += low <= 0.0 <= high
  # A share of 1,200 is known to 0.6%.
  assert covered / searches == pytest.approx(0.95, abs=0.01)
