"""What a search refuses or warns of."""

import warnings

import pytest

from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.selection.nose import nose
from tests.support.search_models import make_images

IMAGES = make_images(130)


def test_few_images_are_warned_of(model):
  with pytest.warns(UserWarning, match='only 127 images'):
    nose(model, [IMAGES[:127]], num_layers=1)
  said = []
  with warnings.catch_warnings(action='error'):
    nose(model, [IMAGES[:100]], num_layers=1, warn=said.append)
  assert len(said) == 1


def test_enough_images_are_not_warned_of(model):
  with warnings.catch_warnings(action='error'):
    nose(model, [IMAGES[:128]], num_layers=1)


@pytest.mark.parametrize(
  'batches, words',
  [
    ([IMAGES[:1]], '1 image cannot show a deviation'),
    ([], 'no batch holds an image'),
    (None, 'no batch holds an image'),
  ],
  ids=('one', 'none', 'None'),
)
def test_too_few_images_are_refused(model, batches, words):
  with pytest.raises(DataError, match=words):
    nose(model, batches, num_layers=1)


@pytest.mark.parametrize(
  'options, words',
  [
    ({'criterion': 'entrpy'}, 'not known'),
    ({'criterion': 'cosin'}, 'did you mean cosine'),
    ({'criterion': 'cosine:loss_increase'}, 'only exhaustive takes a score'),
    ({'criterion': 'exhaustive:cosine'}, 'only exhaustive takes a score'),
    ({'criterion': 'probe'}, 'probe trains, which this function cannot'),
    ({'target': 'tokens'}, 'logits or features'),
    ({'sign': 'plus'}, 'signed or absolute'),
    ({'criterion': 'given'}, 'needs select.layers'),
    ({'num_layers': 4}, 'at most 3'),
  ],
  ids=str,
)
def test_bad_options(model, options, words):
  with pytest.raises(UsageError, match=words):
    nose(model, [IMAGES], **({'num_layers': 1} | options))


@pytest.mark.parametrize('layers', [(0, 0), (4,), (0, 1, 2, 3)], ids=str)
def test_impossible_layers(model, layers):
  with pytest.raises(ModelError):
    nose(model, None, criterion='given', layers=layers)


def test_an_interrupted_search_of_other_layers_is_not_gone_on_with(model):
  begun = nose(model, None, criterion='given', layers=(2,))
  with pytest.raises(UsageError, match=r'chose the layers \[2\], which'):
    nose(model, None, criterion='given', layers=(0, 1), resume=begun)
  more = nose(model, None, criterion='given', layers=(2, 0), resume=begun)
  assert more.order == (2, 0)


def test_layers_without_attention(model):
  pruned = prune(model, (1,))
  with pytest.raises(UsageError, match=r'blocks \[1\] have no attention'):
    nose(pruned, None, criterion='given', layers=(1,))


def test_loss_increase_needs_labels(model):
  with pytest.raises(DataError, match='needs a label'):
    nose(model, [IMAGES], criterion='loss_increase', num_layers=1)
