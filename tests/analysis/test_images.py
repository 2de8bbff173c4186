"""Every form in which users have images is read; what holds none is refused."""

import pathlib
import types

import jax
import numpy as np
import pytest

from lambda_vit_jax.analysis import images
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.core.errors import DataError
from tests.support.processes import run_processes
from tests.support.search_models import make_images, make_model, mesh_of
from tests.support.tensors import DataLoader, Tensor

IMAGES = make_images(12)
LABELS = np.arange(12)


class Loader:
  """Yields `(images, labels)`, as a data loader of another library does."""

  def __init__(self, kind):
    self.kind = kind

  def __iter__(self):
    for start in (0, 5, 10):
      part = slice(start, start + 5)
      yield self.kind((IMAGES[part], LABELS[part]))


class Items:
  """Batches by their index alone, as a sequence of Keras has them."""

  def __getitem__(self, index):
    if index > 2:
      raise IndexError
    part = slice(5 * index, 5 * index + 5)
    return IMAGES[part], LABELS[part]


FORMS = {
  'one array': (IMAGES, False),
  'a list of arrays': ([IMAGES[:7], IMAGES[7:]], False),
  'a tuple of arrays': ((IMAGES[:7], IMAGES[7:]), False),
  'a list of lists of images': ([list(IMAGES[:10]), list(IMAGES[10:])], False),
  'a device axis': (IMAGES.reshape(4, 3, 8, 8, 1), False),
  'a generator': ((IMAGES[i : i + 3] for i in range(0, 12, 3)), False),
  'one dict': ({'image': IMAGES, 'label': LABELS}, True),
  'dicts': ([{'image': IMAGES, 'label': LABELS}], True),
  'pairs in tuples': (Loader(tuple), True),
  'triples': ([(IMAGES, LABELS, ['a.png'] * 12)], True),
  'items without an iterator': (Items(), True),
  "dicts of Transformers'": (
    [{'pixel_values': IMAGES, 'labels': LABELS}],
    True,
  ),
  'pairs in lists': (Loader(list), True),
  'a loader of PyTorch': (DataLoader(IMAGES, LABELS), True),
  'one that learns': (DataLoader(IMAGES, LABELS, requires_grad=True), True),
  'one tensor': (Tensor(IMAGES, requires_grad=True), False),
  'tensors in dicts': (
    [{'image': Tensor(IMAGES), 'label': Tensor(LABELS)}],
    True,
  ),
}


@pytest.fixture(scope='module')
def model(tiny_variant):
  return make_model(tiny_variant)


@pytest.mark.parametrize('form', FORMS)
def test_forms_of_batches(model, form):
  batches, labelled = FORMS[form]
  found = read_images(batches, model)
  np.testing.assert_array_equal(np.concatenate(found.images), IMAGES)
  assert (found.labels is not None) == labelled
  if labelled:
    np.testing.assert_array_equal(np.concatenate(found.labels), LABELS)


CHANNELS_FIRST = np.zeros((4, 1, 8, 8), np.float32)
REFUSED = {
  'an int': (3, 'batches=3 holds no images; give an NHWC array'),
  'a str': ('photos/', r'photos/. holds no images.* lv.image_batches\(folder'),
  'a path': (pathlib.Path('photos'), r'holds no images.*lv.image_batches\('),
  'bytes': (b'photos', 'holds no images'),
  'none': (None, 'batches=None holds no images'),
  'a list of paths': (['a.png', 'b.png'], 'batch 0 is no array of numbers'),
  'a list of ints': ([1, 2], r'batch 0 has shape \(\) and holds no images'),
  'channels first': (
    CHANNELS_FIRST,
    r'shape \(1, 8, 8\), channels first; the model takes \(8, 8, 1\)'
    r' .*: give images.transpose\(0, 2, 3, 1\)',
  ),
  'channels that differ within a batch': (
    [[IMAGES[0], np.zeros((8, 8, 3))]],
    'batch 0 is no array of numbers of one shape',
  ),
  'channels that differ between batches': (
    [IMAGES, np.zeros((2, 8, 8, 3))],
    r'batch 1 has images of shape \(8, 8, 3\); the model takes \(8, 8, 1\)',
  ),
  'no batch': ([], 'no batch holds an image'),
  'a generator that is used up': (
    iter(()),
    'is used up, or empty: give a list, or make it anew for each call',
  ),
  'an empty batch': (IMAGES[:0], 'no batch holds an image'),
  'one image': (
    IMAGES[0],
    r'shape \(8, 8, 1\), that of one image: add a batch',
  ),
  'a list of images': (list(IMAGES), 'batch 0 has .* add a batch axis'),
  'images and labels that are no pair': (
    (IMAGES, LABELS),
    r'batch 1 has shape \(12,\) and holds no images; .* \(images, labels\)',
  ),
  'too few labels': (
    [(IMAGES, LABELS[:3])],
    'batch 0 has 12 images and 3 labels',
  ),
  'labels that are text': (
    [(IMAGES, ['cat'] * 12)],
    'batch 0 has labels of type',
  ),
  'labels that are shares': ([(IMAGES, LABELS / 12)], 'give one class index'),
  'NaN': ([IMAGES, IMAGES * np.nan], 'batch 1 has NaN or infinite values'),
  'a dict without image': ([{'pixels': IMAGES}], 'has no `image`'),
}


@pytest.mark.parametrize('form', REFUSED)
def test_what_holds_no_images_is_refused_in_one_line(model, form):
  batches, message = REFUSED[form]
  with pytest.raises(DataError, match=message) as caught:
    read_images(batches, model)
  assert '\n' not in str(caught.value)


def test_eight_bits_choose_as_normalised_images_do(model):
  pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1))
  pixels = pixels.astype(np.uint8)
  (mean,), (std,) = model.preprocessing.mean, model.preprocessing.std
  floats = ((pixels / 255 - mean) / std).astype(np.float32)
  found = read_images([pixels], model)
  # One float32 product and sum.
  np.testing.assert_allclose(found.images[0], floats, atol=2e-7)
  # One warning, however many batches there are.
  with pytest.warns(UserWarning, match='values from 0 to 255') as said:
    read_images([pixels.astype(np.float32)] * 3, model)
  assert len(said) == 1
  # As of the line that gave the images, however deep in the package it is found.
  assert said[0].filename == __file__


def test_a_model_reads_what_the_functions_read(model):
  images = IMAGES[:3]
  expected = np.asarray(model(images))
  first = images.transpose(0, 3, 1, 2)
  for given in (Tensor(images, requires_grad=True), Tensor(first)):
    np.testing.assert_array_equal(model(given), expected)
    # Another program, with intermediates: float32 rounding.
    np.testing.assert_allclose(model.apply(given)[0], expected, atol=1e-5)
  for given, message in (
    (first, 'channels first'),
    (images[0], 'add a batch axis'),
    (images[:, :4], 'the model takes'),
    ('a.png', 'no array of numbers'),
    (images * np.nan, 'the batch has NaN or infinite values'),
  ):
    for call in (model, model.apply):
      with pytest.raises(DataError, match=message):
        call(given)


@pytest.mark.parametrize('devices', [1, 3, 5, 6])
@pytest.mark.parametrize('number', [1, 2, 5, 12])
def test_devices_that_divide_nothing_get_every_image_once(
  model, devices, number
):
  """Fewer images than devices, too: the rest is padding, and masked."""
  # Batches that end within micro-batches, and beyond them.
  parts = np.split(np.arange(number), [number // 4, number // 3])
  batches = [{'image': IMAGES[k], 'label': LABELS[k] + 1} for k in parts]
  found = read_images(batches, model, mesh_of(devices))
  assert found.total == number
  rows = []
  for batch in found.micro_batches(devices):
    assert len(batch['image'].addressable_shards) == devices
    mask = np.asarray(batch['mask'])
    assert mask.shape == (devices,)
    assert not np.asarray(batch['image'])[~mask].any()
    assert not np.asarray(batch['label'])[~mask].any()
    rows.append((np.asarray(batch['image'])[mask], batch['label'][mask]))
  assert len(rows) == -(-number // devices)
  images, labels = (np.concatenate(part) for part in zip(*rows, strict=True))
  np.testing.assert_array_equal(images, IMAGES[:number])
  np.testing.assert_array_equal(labels, LABELS[:number] + 1)


# The first process has two batches, of two images and of one; the second has
# one of three. An image is its number.
_RAGGED = """
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from lambda_vit_jax.analysis.images import ImageSet, gathered
numbers = ([[0, 1], [5]], [[2, 3, 4]])[int(sys.argv[2])]
parts = [np.float32(n).reshape(-1, 1, 1, 1) for n in numbers]
print(','.join(f'{n:g}' for n in gathered(ImageSet(tuple(parts), None, None)).ravel()))
"""


@pytest.mark.slow
def test_processes_gather_images_in_the_order_of_the_batches():
  """Each has all of them, whoever read more; else one waits for the other."""
  assert run_processes(_RAGGED) == ['0,1,2,3,4,5'] * 2


def device(platform, limit=None):
  stats = None if limit is None else {'bytes_limit': limit}
  return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)


@pytest.mark.parametrize(
  'devices, room',
  [
    # A CPU's limit is that of the host, where the images are already.
    ([device('cpu', 1e12)], 0),
    ([device('gpu', 1e10), device('gpu', 1e10)], 2e9),
    # Not every plugin says what it has.
    ([device('tpu')], 0),
  ],
)
def test_a_tenth_of_the_accelerators_is_for_images(devices, room, monkeypatch):
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)
  assert images._room_for_images() == pytest.approx(room)


@pytest.mark.parametrize('room, kept', [(0, False), (1e9, True)])
def test_images_stay_on_devices_that_have_room(model, room, kept, monkeypatch):
  """Sent anew in every round, they would hold up each round of a search."""
  monkeypatch.setattr(images, '_room_for_images', lambda: room)
  batch = IMAGES[:5]
  found = read_images([batch], model)
  first, second = (list(found.micro_batches(2)) for _ in range(2))
  for mine, other in zip(first, second, strict=True):
    assert (mine['image'] is other['image']) == kept
    for name in ('image', 'label', 'mask'):
      np.testing.assert_array_equal(mine[name], other[name])
  # Another size has its own, and a pass that was not ended leaves nothing.
  next(found.micro_batches(4))
  again = list(found.micro_batches(4))
  assert [len(x['mask']) for x in again] == [4, 4]
  total = np.concatenate([x['image'][x['mask']] for x in again])
  np.testing.assert_array_equal(total, batch)
