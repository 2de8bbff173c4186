"""Every option of a search: what it changes, and that the record says so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.selection.nose import nose, select
from lambda_vit_jax.selection.options import SearchOptions, canonical
from tests.support.search_models import (
  labelled_batches,
  make_images,
  make_model,
)

IMAGES = make_images(130)
BATCHES = labelled_batches(IMAGES)


def test_records_of_earlier_versions_are_resumed_with_the_default():
  """A search is resumed with as many resamples as it had: 1,000 till now."""
  assert SearchOptions().resamples == 1000


def search(model, batches=BATCHES, num_layers=2, **options):
  options = SearchOptions(num_layers=num_layers, resamples=20, **options)
  return select(model, batches, options)


def size_of(sign):
  return abs if sign == 'absolute' else float


@pytest.mark.parametrize('sign', ['signed', 'absolute'])
@pytest.mark.parametrize(
  'criterion, trial',
  [
    ('transfer_entropy', 'skip'),
    ('loss_increase', 'skip'),
    ('loss_increase', 'linear'),
  ],
)
def test_a_round_takes_the_least_by_the_recorded_sign(
  model, criterion, trial, sign
):
  found = search(model, criterion=criterion, trial=trial, sign=sign)
  assert (found.sign, found.trial) == (sign, trial)
  size = size_of(sign)
  for row in found.rounds:
    least = min(map(size, row.scores.values()))
    assert size(row.scores[row.chosen]) == least
  # Otherwise the two signs could not be told apart.
  assert min(found.rounds[0].scores.values()) < 0.0


@pytest.mark.parametrize('sign', ['signed', 'absolute'])
@pytest.mark.parametrize('score', ['transfer_entropy', 'loss_increase'])
def test_exhaustive_takes_the_least_by_the_recorded_sign(model, score, sign):
  found = search(model, criterion=f'exhaustive:{score}', sign=sign)
  assert found.sign == sign
  size = size_of(sign)
  least = min(map(size, found.set_scores.values()))
  assert size(found.set_scores[found.removed]) == least
  assert found.resamples == 0


@pytest.mark.parametrize(
  'criterion', ['cosine', 'affine', 'random', 'first', 'last']
)
def test_scores_without_a_sign_are_recorded_as_signed(model, criterion):
  """Ranks of `last` are negative: by magnitude it would be `first`."""
  plain = search(model, criterion=criterion)
  found = search(model, criterion=criterion, sign='absolute')
  assert found.sign == 'signed'
  assert found.order == plain.order
  # Nothing is resampled either.
  assert found.resamples == 0
  assert found.agreement is None


@pytest.mark.parametrize(
  'criterion, target, recorded',
  [
    ('transfer_entropy', 'logits', 'logits'),
    ('transfer_entropy', 'features', 'features'),
    ('loss_increase', 'features', 'loss'),
    ('exhaustive:loss_increase', 'logits', 'loss'),
  ],
)
def test_the_target_is_recorded_as_measured(model, criterion, target, recorded):
  found = search(model, criterion=criterion, target=target, num_layers=1)
  assert found.target == recorded


@pytest.mark.parametrize(
  'options',
  [
    {'criterion': 'transfer_entropy'},
    {'criterion': 'transfer_entropy', 'target': 'features'},
    {'criterion': 'transfer_entropy', 'sign': 'absolute'},
    {'criterion': 'loss_increase'},
    {'criterion': 'cosine'},
    {'criterion': 'affine'},
    {'criterion': 'exhaustive'},
  ],
  ids=lambda options: ' '.join(options.values()),
)
def test_the_order_of_images_and_their_batches_do_not_matter(model, options):
  """Scores are of a set of images; a label goes with its image."""
  order = np.random.default_rng(5).permutation(len(IMAGES))
  labels = np.concatenate([batch['label'] for batch in BATCHES])
  mixed = [
    {'image': IMAGES[part], 'label': labels[part]}
    for part in np.split(order, (7, 90))
  ]
  first, second = (
    search(model, batches, **options) for batches in (BATCHES, mixed)
  )
  assert second.order == first.order
  scores = [row.set_scores or row.rounds[-1].scores for row in (first, second)]
  # Rounding of float32 activations.
  assert scores[1] == pytest.approx(scores[0], abs=1e-4, rel=1e-4)


def test_labels_matter_to_the_loss_alone(model):
  shifted = [b | {'label': (b['label'] + 1) % 10} for b in BATCHES]

  def scores(batches, criterion):
    found = search(model, batches, criterion=criterion, num_layers=1)
    return found.rounds[0].scores

  assert scores(shifted, 'loss_increase') != pytest.approx(
    scores(BATCHES, 'loss_increase'), abs=1e-3
  )
  assert scores(shifted, 'transfer_entropy') == scores(
    BATCHES, 'transfer_entropy'
  )


def test_permuted_blocks_are_scored_where_they_are(model):
  """A layer is found by its effect: make a later one the least of all."""
  params = jax.tree.map(np.array, model.params)
  for leaf in params['block02']['attn']['proj'].values():
    leaf *= 1e-6
  found = search(model.replace(params=params), sign='absolute', num_layers=1)
  assert found.order == (2,)
  assert abs(found.rounds[0].scores[2]) < 1e-4


def test_seed_and_resamples_are_of_the_bootstrap(model):
  first, again, other = (
    search(model, num_layers=1, seed=seed).rounds[0] for seed in (0, 0, 1)
  )
  assert first.intervals == again.intervals
  assert first.intervals != other.intervals
  assert first.scores == other.scores


@pytest.mark.parametrize(
  'given, name',
  [
    ('nose', 'transfer_entropy'),
    ('NOSE', 'transfer_entropy'),
    ('exhaustive:nose', 'exhaustive:transfer_entropy'),
    ('loss_increase', 'loss_increase'),
  ],
)
def test_nose_is_a_name_of_its_criterion(given, name):
  assert canonical(given) == name


@pytest.mark.parametrize('given', ['nose', 'exhaustive:nose'])
def test_a_search_by_the_name_nose(model, given):
  found = search(model, criterion=given)
  same = search(model, criterion=canonical(given))
  assert found.criterion == same.criterion == canonical(given)
  assert found.order == same.order
  assert found.set_scores == same.set_scores


@pytest.mark.parametrize(
  'labels, says',
  [(-1, 'labels are from -1 to -1'), (10, 'from 10 to 10'), (None, 'batches')],
)
def test_labels_that_no_class_has_are_refused(model, labels, says):
  """One below 0 would be that of the last class, one too large no number."""
  batches = [{'image': IMAGES, 'label': np.full(130, labels or 0)}]
  if labels is None:
    batches.append({'image': IMAGES})
  with pytest.raises(DataError, match=says):
    search(model, batches, criterion='loss_increase')


def test_one_class_has_no_loss(tiny_variant):
  variant = dataclasses.replace(tiny_variant, num_classes=1)
  batches = [{'image': IMAGES, 'label': np.zeros(130, int)}]
  with pytest.raises(DataError, match='compares classes, and the head has one'):
    search(make_model(variant), batches, criterion='loss_increase')


def test_nose_makes_linear_trials(model):
  assert search(model, criterion='nose', trial='linear').trial == 'linear'
  with pytest.raises(UsageError, match='cosine makes no such trials'):
    search(model, criterion='cosine', trial='linear')


def test_half_precision_is_searched_in_float32(model):
  """In bfloat16 the scores would move by as much as their intervals."""
  half = model.replace(module=model.module.clone(dtype=jnp.bfloat16))
  rows = [search(m).rounds for m in (model, half)]
  for mine, other in zip(*rows, strict=True):
    assert dataclasses.replace(mine, seconds=0.0) == dataclasses.replace(
      other, seconds=0.0
    )


def test_products_of_a_search_have_the_precision_of_float32(model):
  """Elsewhere accelerators multiply float32 in fewer digits."""
  seen = []
  nose(
    model,
    [IMAGES],
    num_layers=1,
    on_progress=lambda _: seen.append(jax.config.jax_default_matmul_precision),
  )
  assert set(seen) == {'highest'}
  assert jax.config.jax_default_matmul_precision is None
