"""`lv.evaluate` and `lv.predict` against NumPy, one image at a time."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.runtime import sharding
from tests.support.search_models import mesh_of
from tests.support.small_models import LINEAR, NANO, make_segmenter

IMAGES = 13


@pytest.fixture(scope='module')
def model():
  # Not near the uniform distribution, which would hide a wrong sum.
  found = lv.create_model(NANO, seed=3)
  params = jax.tree.map(lambda x: np.asarray(3 * x), found.params)
  return found.replace(params=params, class_names=tuple('abcdefghij'))


@pytest.fixture(scope='module')
def data(model):
  rng = np.random.default_rng(0)
  size = (IMAGES, *model.module.image_size, model.module.in_chans)
  images = rng.normal(size=size).astype(np.float32)
  logits = np.asarray(model(images), np.float64)
  # Some right, some among the five, some wrong.
  rank = np.arange(IMAGES) % 8
  labels = np.argsort(-logits, axis=1)[np.arange(IMAGES), rank]
  return images, labels, logits, rank


def expected(logits, labels, rank):
  log_sum = np.log(np.exp(logits).sum(axis=1))
  loss = log_sum - logits[np.arange(len(labels)), labels]
  return (rank == 0), (rank < 5).mean(), loss.mean()


@pytest.mark.parametrize('cuts', [(), (5,), (1, 9)], ids=str)
@pytest.mark.parametrize('as_dict', [False, True])
def test_the_batches_do_not_matter(model, data, cuts, as_dict):
  """A mean of the batches' means differs: they have different sizes."""
  images, labels, logits, rank = data
  parts = zip(np.split(images, cuts), np.split(labels, cuts), strict=True)
  batches = [{'image': x, 'label': y} if as_dict else (x, y) for x, y in parts]
  found = lv.evaluate(model, iter(batches))
  correct, top5, loss = expected(logits, labels, rank)
  np.testing.assert_array_equal(found.correct, correct)
  assert found.top1 == correct.mean()
  assert found.top5 == top5
  # Logits in float32.
  assert found.loss == pytest.approx(loss, rel=1e-5)
  assert found.num_images == IMAGES


def test_bfloat16_is_evaluated_in_float32_on_a_cpu(model, data):
  """Which is faster there, and what calls of the model do."""
  half = model.replace(module=model.module.clone(dtype=jnp.bfloat16))
  # As many as a mesh of eight devices divides.
  images, labels = (rows[:8] for rows in data[:2])
  batch = {'image': images, 'label': labels, 'mask': np.ones(8, bool)}
  found, wanted = (
    (
      lv.evaluate(each, [(images, labels)]).loss,
      accuracy.evaluate_model(each, [batch], sharding.make_mesh(1)),
    )
    for each in (half, model)
  )
  assert found == wanted


def test_devices_share_the_images(model, data):
  images, labels, logits, rank = data
  found = lv.evaluate(model, [(images, labels)], mesh=mesh_of(4))
  correct, _, loss = expected(logits, labels, rank)
  np.testing.assert_array_equal(found.correct, correct)
  assert found.loss == pytest.approx(loss, rel=1e-5)


def test_padding_is_not_counted(model, data):
  images, labels, _, rank = data
  batch = {'image': images, 'label': labels, 'mask': np.arange(IMAGES) < 4}
  found = lv.evaluate(model, [batch])
  np.testing.assert_array_equal(found.correct, rank[:4] == 0)


def test_the_interval_is_of_paired_differences():
  """Two models that are right on the same images differ by exactly nothing."""
  right = np.arange(100) % 2 == 0
  first = lv.Evaluation(0.5, 1.0, 0.0, right)
  assert first.minus(first) == (0.0, 0.0)
  other = lv.Evaluation(0.4, 1.0, 0.0, right & (np.arange(100) >= 20))
  mean, width = first.minus(other)
  # Ten of a hundred images: a deviation of √(0.1·0.9).
  assert mean == pytest.approx(0.1)
  assert width == pytest.approx(1.96 * 0.3 / 10)
  with pytest.raises(UsageError, match='100 and 5 images'):
    first.minus(lv.Evaluation(1.0, 1.0, 0.0, np.ones(5, bool)))
  with pytest.raises(UsageError, match='must be a Evaluation'):
    first.minus(first.minus(other))


WRONG = {
  'no labels': (lambda x, y: [x], 'batch 0 has no labels'),
  'a label that no class has': (
    lambda x, y: [(x[:1], y[:1]), (x, y + 5)],
    'batch 1 has labels from . to 1., and the model has classes 0 to 9',
  ),
  'no image': (lambda x, y: [(x[:0], y[:0])], 'no batch holds an image'),
  'no batch': (lambda x, y: [], 'no batch holds an image'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_cannot_be_evaluated_is_refused(model, data, case):
  make, message = WRONG[case]
  with pytest.raises(DataError, match=message):
    lv.evaluate(model, make(data[0], data[1]))


def test_models_without_a_class_per_image_are_refused(data):
  headless = lv.create_model(NANO, num_classes=0)
  with pytest.raises(ModelError, match='has no head'):
    lv.evaluate(headless, [data[:2]])
  with pytest.raises(ModelError, match='has no head'):
    lv.predict(headless, data[0])
  with pytest.raises(ModelError, match='segments'):
    lv.evaluate(make_segmenter(LINEAR), [data[:2]])


def test_a_network_of_nan_has_neither_accuracy_nor_classes(model, data):
  """Its best class is the first one, which is right now and then."""
  head = {name: leaf * np.nan for name, leaf in model.params['head'].items()}
  broken = model.replace(params=model.params | {'head': head})
  with pytest.raises(ModelError, match='evaluate: activations are NaN'):
    lv.evaluate(broken, [data[:2]])
  with pytest.raises(ModelError, match='predict: activations are NaN'):
    lv.predict(broken, np.zeros((8, 8), np.uint8))


def test_predictions_are_of_the_prepared_image(model):
  """Probabilities in order; the same as by hand from the logits."""
  rng = np.random.default_rng(1)
  height, width = model.module.image_size
  shape = (height, width, model.module.in_chans)
  pixels = rng.integers(0, 256, shape, dtype=np.uint8)
  if shape[-1] == 1:
    pixels = pixels[..., 0]
  (found,) = model.predict(pixels, topk=3)
  assert found == lv.predict(model, [pixels], 3)[0]
  logits = np.asarray(model(lv.preprocess(pixels, model))[0], np.float64)
  weights = np.exp(logits) / np.exp(logits).sum()
  best = np.argsort(-weights)[:3]
  assert list(found) == ['abcdefghij'[k] for k in best]
  np.testing.assert_allclose(list(found.values()), weights[best], rtol=1e-6)
  with pytest.raises(UsageError, match='topk=0'):
    model.predict(pixels, topk=0)


def test_a_summary_is_the_table_as_text(model):
  assert model.summary() == str(model.table())
  assert 'parameters' in model.summary()


def test_pixels_that_are_not_normalised_are_normalised(model, data):
  """uint8 as they come from a file give what `lv.preprocess` gives."""
  rng = np.random.default_rng(2)
  shape = (3, *model.module.image_size, model.module.in_chans)
  pixels = rng.integers(0, 256, shape, dtype=np.uint8)
  labels = np.zeros(3, int)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = lv.evaluate(model, [(pixels, labels)])
  logits = np.asarray(model(pixels))
  np.testing.assert_array_equal(found.correct, logits.argmax(1) == 0)


@pytest.mark.parametrize('scale', ['pixels', 'fractions'])
def test_images_that_are_not_normalised_are_warned_of(model, data, scale):
  """An accuracy of them is that of other images."""
  images, labels, *_ = data
  fractions = (images - images.min()) / np.ptp(images)
  floats = fractions * 255 if scale == 'pixels' else fractions
  with pytest.warns(UserWarning, match='normalised'):
    lv.evaluate(model, [(floats, labels)] * 2)
  with pytest.warns(UserWarning, match='normalised'):
    model(floats)


def test_a_used_up_generator_is_said_to_be_one(model, data):
  images, labels, *_ = data
  batches = ((images, labels) for _ in range(1))
  lv.evaluate(model, batches)
  with pytest.raises(DataError, match='used up'):
    lv.evaluate(model, batches)
