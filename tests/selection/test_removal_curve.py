"""Accuracy over the layers left out equals that of the networks without them."""

import numpy as np
import pytest

from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.evaluation.scores import evaluate
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.selection.removal_curve import top1_over_removed
from tests.support.search_models import (
  NUM_IMAGES,
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

IMAGES = make_images()


def labelled(model):
  """Images with the model's own answers, a third of them altered."""
  labels = np.asarray(model(IMAGES)).argmax(axis=-1)
  labels[::3] += 1
  return [{'image': IMAGES, 'label': labels % model.num_classes}]


# In turn a plain network, and one that had lost attention before.
@pytest.mark.parametrize('gone', [(), (1,)])
@pytest.mark.parametrize('order', [(2, 0), (0, 3)])
def test_as_if_every_network_were_made_and_evaluated(model, gone, order):
  model = prune(model, gone) if gone else model
  batches = labelled(model)
  found = top1_over_removed(model, read_images(batches, model), order)
  # Logits differ by rounding, which moves no image of these over an edge.
  for count, top1 in enumerate(found):
    smaller = prune(model, order[:count], mode='absent') if count else model
    assert top1 == evaluate(smaller, batches).top1
  assert len(found) == len(order) + 1
  assert found[0] == (NUM_IMAGES - len(IMAGES[::3])) / NUM_IMAGES
  # Otherwise a curve that leaves nothing out would pass.
  assert len(set(found)) > 1


def test_the_same_fractions_on_any_number_of_devices(model):
  batches = labelled(model)
  one, three = (
    top1_over_removed(model, read_images(batches, model, mesh_of(n)), (1, 2))
    for n in (1, 3)
  )
  assert one == three


def test_labels_are_needed(tiny_variant):
  model = make_model(tiny_variant)
  with pytest.raises(DataError, match='accuracy needs a label for every image'):
    top1_over_removed(model, read_images(batches_of(IMAGES), model), (1,))
