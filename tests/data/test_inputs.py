"""`lv.preprocess` and `lv.image_batches`: the input as in evaluation."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import lambda_vit_jax as lv
from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.data import transforms
from tests.support.pictures import encode, photo, tagged
from tests.support.small_models import LINEAR, make_segmenter
from tests.support.tensors import Tensor


@pytest.fixture(scope='module')
def model():
  return lv.create_model('vit_nano_patch2_8')


@pytest.fixture
def grey(rng):
  return np.asarray(photo(20, 13, rng).convert('L'))


@pytest.mark.parametrize(
  'kind',
  [
    lambda x: x,
    lambda x: x[..., None],
    lambda x: np.repeat(x[..., None], 3, -1),
    lambda x: x / 255,
    lambda x: (x / 255).astype(np.float32)[None],
    lambda x: x.astype(np.int32),
    lambda x: jnp.asarray(x),
    lambda x: Tensor(np.repeat(x[None], 3, 0), requires_grad=True),
    Image.fromarray,
    lambda x: encode(Image.fromarray(x), 'PNG'),
    lambda x: tagged(x, 6),
  ],
  ids=[
    'grey',
    'one channel',
    'RGB',
    'float64 in 0 to 1',
    'float32 in a batch of one',
    'int32',
    'jax',
    'channels first',
    'Pillow',
    'PNG',
    'turned by EXIF',
  ],
)
def test_an_image_of_any_kind_is_read_as_in_evaluation(kind, grey, model):
  expected = transforms.evaluation_array(grey, model.preprocessing)
  for given in (kind(grey), [kind(grey)]):
    np.testing.assert_array_equal(lv.preprocess(given, model), expected[None])


def test_files_and_batches(grey, model, tmp_path):
  path = tmp_path / 'a.png'
  Image.fromarray(grey).save(path)
  one = lv.preprocess(grey, model)
  found = lv.preprocess([path, str(path), grey[::-1]], model)
  np.testing.assert_array_equal(found[:2], np.concatenate([one, one]))
  stacked = np.stack([grey, grey[::-1]])[..., None]
  np.testing.assert_array_equal(lv.preprocess(stacked, model), found[1:])


def test_what_segments_sees_the_whole_image(grey):
  model = make_segmenter(LINEAR)
  found = lv.preprocess(grey, model)[0]
  (mean,), (std,) = model.preprocessing.mean, model.preprocessing.std
  # 20 x 13 pixels fit as 8 x 5; the rest has the mean colour.
  rest = (round(255 * mean) / 255 - mean) / std
  np.testing.assert_allclose(found[5:], rest, atol=1e-6)
  assert (found[:5] != found[7, 7]).mean() > 0.9


@pytest.mark.parametrize(
  'given, message',
  [
    ([], 'the list is empty'),
    ('https://host/a.png', 'is a URL; download it'),
    ('nowhere.png', r'nowhere\.png: cannot be read'),
    ([np.zeros((4, 4)), 3], 'image 1: is no path, bytes'),
    ([b'text'], 'image 0: not a known image format'),
    (np.full((4, 4), -1.0), 'image 0: has values from -1 to 0'),
    (np.full((4, 4), 300), 'image 0: has values from 0 to 300'),
    (np.full((4, 4), np.nan), 'image 0: has values from'),
    (np.zeros((5, 4, 2)), r'image 0: has shape \(5, 4, 2\)'),
  ],
)
def test_what_is_no_image_is_named(given, message, model):
  with pytest.raises(DataError, match=message) as raised:
    lv.preprocess(given, model)
  assert '\n' not in str(raised.value)


@pytest.fixture
def folder(tmp_path):
  for label in range(3):
    for index in range(4):
      path = tmp_path / f'class{label}' / f'{index}.png'
      path.parent.mkdir(exist_ok=True)
      level = np.full((8, 8), 10 * label + index, np.uint8)
      Image.fromarray(level).save(path)
  (tmp_path / 'notes.txt').write_text('')
  return tmp_path


def _levels(batches, model):
  (mean,), (std,) = model.preprocessing.mean, model.preprocessing.std
  first = np.concatenate([batch[:, 4, 4, 0] for batch in batches])
  return np.rint((first * std + mean) * 255).astype(int).tolist()


def test_a_folder_in_batches_any_number_of_times(folder, model):
  batches = lv.image_batches(folder, model, batch_size=5)
  assert [batch.shape for batch in batches] == [
    (size, 8, 8, 1) for size in (5, 5, 2)
  ]
  assert len(batches) == 3
  # Without the names of all files.
  assert repr(batches).endswith('12 images in 3 batches)')
  levels = [10 * label + index for label in range(3) for index in range(4)]
  assert _levels(batches, model) == _levels(batches, model) == levels


def test_some_images_are_spread_over_the_classes(folder, model):
  batches = lv.image_batches(str(folder), model, num_images=3)
  assert {level // 10 for level in _levels(batches, model)} == {0, 1, 2}


def test_batches_of_a_folder_are_what_functions_take(folder, model):
  batches = lv.image_batches(folder, model)
  found = lv.entropy_profile(model, batches)
  again = lv.entropy_profile(model, np.concatenate(list(batches)))
  np.testing.assert_array_equal(found.mlp_entropy, again.mlp_entropy)


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('nowhere', {}, 'is not a folder of images'),
    ('https://host/photos', {}, 'is a URL'),
    ('', {'num_images': 13}, 'has 12 images; num_images=13'),
    ('', {'num_images': 0}, 'num_images=0'),
    ('empty', {}, 'a folder that holds no image'),
    ('', {'batch_size': 0}, 'batch_size=0'),
  ],
)
def test_folders_that_do_not_do(name, options, message, folder, model):
  (folder / 'empty').mkdir()
  with pytest.raises(DataError, match=message):
    lv.image_batches(name if ':' in name else folder / name, model, **options)


def classifier(number, names=()):
  model = lv.create_model('vit_nano_patch2_8', num_classes=number)
  return model.replace(class_names=names)


@pytest.mark.parametrize(
  'number, names, labels',
  [
    (3, (), [0, 1, 2]),
    # The model's own order, and a class of which there is no image.
    (4, ('class2', 'other', 'class0', 'class1'), [2, 3, 0]),
  ],
)
def test_a_folder_with_the_classes_of_its_subfolders(
  folder, number, names, labels
):
  model = classifier(number, names)
  batches = lv.image_batches(folder, model, labels=True, batch_size=5)
  found = list(batches)
  assert [len(batch['image']) for batch in found] == [5, 5, 2]
  given = np.concatenate([batch['label'] for batch in found])
  assert given.tolist() == np.repeat(labels, 4).tolist()
  assert lv.evaluate(model, batches).num_images == 12


@pytest.mark.parametrize(
  'number, names, message',
  [
    (4, (), 'has 3 subfolders, .* which does not name its classes, has 4'),
    (2, ('class0', 'class1'), "'class2' is no class of the model"),
  ],
)
def test_subfolders_that_are_not_the_classes(folder, number, names, message):
  with pytest.raises(DataError, match=message):
    lv.image_batches(folder, classifier(number, names), labels=True)


def test_images_in_no_subfolder_have_no_class(folder, model):
  name = lv.image_batches(folder, model).files[0]
  shutil.copy(folder / name, folder / 'loose.png')
  with pytest.raises(DataError, match=r'loose\.png lies in no subfolder'):
    lv.image_batches(folder, model, labels=True)


def test_a_broken_file_is_named(folder, model):
  broken = pathlib.Path(folder) / 'class1/2.png'
  broken.write_bytes(broken.read_bytes()[:40])
  with pytest.raises(DataError, match=r'class1/2\.png: not a readable image'):
    list(lv.image_batches(folder, model))
