"""Images with masks: files, bad input, and what happens to both alike."""

import io
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.core.preprocessing import IGNORED, Preprocessing
from lambda_vit_jax.data import masks, pipeline
from lambda_vit_jax.data.check import check_data
from lambda_vit_jax.data.decode import UndecodableError
from lambda_vit_jax.data.masks import MaskError, MaskRules
from lambda_vit_jax.data.pipeline import Loading
from lambda_vit_jax.data.segment_augment import SegmentAugment, distort
from lambda_vit_jax.data.sources.registry import open_dataset, open_masks
from tests.support.mask_sources import Source, blocks, png
from tests.support.pictures import STORED, tagged

GREY = Preprocessing((16, 24), (0.5,), (0.5,), 1.0, 'bilinear')
RULES = MaskRules(4)


@pytest.fixture
def source(rng):
  sizes = ((32, 48), (16, 24), (40, 30))
  return Source([tuple(map(png, blocks(rng, *size))) for size in sizes])


# --- mask files -------------------------------------------------------------


VALUES = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)


def with_palette(values):
  image = Image.fromarray(values, 'P')
  image.putpalette([7 * k % 256 for k in range(768)])
  file = io.BytesIO()
  image.save(file, 'PNG')
  return file.getvalue()


@pytest.mark.parametrize(
  'data',
  [
    with_palette(VALUES),
    png(VALUES),
    VALUES,
    png(np.repeat(VALUES[..., None], 3, -1)),
  ],
  ids=['palette', 'grey', 'array', 'equal channels'],
)
def test_a_mask_is_indices_and_not_colours(data):
  found = RULES.read(data, (3, 2))
  assert found.tolist() == [[0, 1, 2], [3, IGNORED, 0]]


def test_zero_may_stand_for_no_class():
  values = np.array([[0, 1, 4, 255]], np.uint8)
  rules = MaskRules(4, reduce_zero_label=True)
  assert rules.read(values, (4, 1)).tolist() == [[IGNORED, 0, 3, IGNORED]]
  with pytest.raises(MaskError, match=r'class 5, out of range: there are 4'):
    rules.read(values + 1, (4, 1))


def test_the_first_class_out_of_range_is_named():
  with pytest.raises(MaskError, match='class 9, out of range'):
    RULES.read(np.array([[0, 9], [7, 8]]), (2, 2))


@pytest.mark.parametrize(
  'mask, message',
  [
    (np.zeros((8, 9)), r'record 0: its mask has 9 x 8 pixels, the image 8 x 8'),
    (np.full((8, 8), 7), r'record 0: its mask holds the class 7, out of range'),
    (np.arange(192).reshape(8, 8, 3), r'record 0: its mask is a colour image'),
  ],
  ids=['size', 'class', 'colours'],
)
@pytest.mark.parametrize('training', [True, False])
def test_bad_masks_are_named(mask, message, training):
  broken = Source([(png(np.zeros((8, 8))), png(mask))])
  recipe = SegmentAugment(RULES)
  if training:
    batches = pipeline.train_batches(
      broken, np.arange(1), GREY, recipe, Loading(1), seed=0
    )
  else:
    batches = pipeline.eval_batches(
      broken, np.arange(1), GREY, Loading(1), recipe
    )
  with pytest.raises(DataError, match=message) as raised:
    next(batches)
  assert '\n' not in str(raised.value)


def test_damaged_masks_can_be_skipped(source):
  image, mask = source.records[0]
  broken = Source([(image, mask[:60]), (image, mask)])
  recipe = SegmentAugment(RULES)
  split = (broken, np.arange(2), GREY)
  with pytest.raises(DataError, match='record 0 cannot be decoded'):
    next(pipeline.eval_batches(*split, Loading(2), recipe))
  skipping = Loading(2, skip_undecodable=True)
  batch = next(pipeline.eval_batches(*split, skipping, recipe))
  assert batch['mask'].tolist() == [False, True]


@pytest.mark.parametrize(
  'data',
  [png(np.eye(48, 32))[:60], b'', b'no image'],
  ids=['cut', 'empty', 'text'],
)
def test_the_line_about_a_damaged_mask_names_the_mask(data):
  with pytest.raises(UndecodableError, match='its mask: '):
    RULES.read(data, (48, 32))


@pytest.mark.parametrize('orientation', STORED)
def test_a_mask_lies_on_the_picture_as_it_is_shown(orientation, rng):
  image, labels = blocks(rng, 16, 24)
  data = tagged(image, orientation)
  # Drawn on what a viewer shows, or turned in the same way by its own tag.
  for mask in (png(labels), tagged(labels, orientation)):
    found, classes = RULES.read_record({'image': data, 'label': mask}, GREY)
    np.testing.assert_array_equal(classes, labels)
    np.testing.assert_array_equal(found, 60 * classes + 20)


def test_a_mask_of_the_stored_picture_is_told_why_it_does_not_fit(rng):
  image, labels = blocks(rng, 16, 24)
  record = {'image': tagged(image, 6), 'label': png(STORED[6](labels))}
  with pytest.raises(MaskError, match='turned by its EXIF orientation'):
    RULES.read_record(record, GREY)


# --- geometry ---------------------------------------------------------------


@pytest.mark.parametrize('length', [12, 24, 36, 48, 100])
def test_labels_are_those_of_the_nearest_pixel_centre(length):
  """On an axis that shrinks, stays or grows; either one at equal distances."""
  labels = np.broadcast_to(np.arange(48), (30, 48))
  for axis, stored in enumerate((labels.T, labels)):
    canvas = (length, 30) if axis else (30, length)
    found = masks.cut_labels(stored, canvas, (0, 0), canvas[::-1])
    chosen = found[0] if axis else found[:, 0]
    centre = (np.arange(length) + 0.5) * 48 / length
    distance = abs(np.arange(48) + 0.5 - centre[:, None])
    np.testing.assert_allclose(
      distance[np.arange(length), chosen], distance.min(1), atol=1e-9
    )


@given(st.integers(1, 400), st.integers(1, 100), st.integers(1, 100))
def test_windows_cover_an_axis(length, window, stride):
  stride = min(stride, window)
  starts = masks.window_starts(length, window, stride)
  assert starts[0] == 0
  assert starts[-1] == max(length - window, 0)
  assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))


@given(st.integers(1, 300), st.integers(1, 300))
def test_fit_lies_within_and_cover_lies_over(width, height):
  inside = masks.scaled(
    (width, height), masks.fitting((width, height), (16, 24))
  )
  assert inside[0] <= 24
  assert inside[1] <= 16
  assert inside[0] == 24 or inside[1] == 16
  over = masks.scaled(
    (width, height), masks.covering((width, height), (16, 24))
  )
  assert over[0] >= 24
  assert over[1] >= 16
  assert over[0] == 24 or over[1] == 16


def test_a_window_of_the_whole_is_the_image(rng):
  pixels, labels = blocks(rng, 16, 24)
  image = Image.fromarray(pixels)
  found = masks.cut(image, (24, 16), (0, 0), GREY)
  np.testing.assert_array_equal(found[..., 0], pixels)
  np.testing.assert_array_equal(
    masks.cut_labels(labels, (24, 16), (0, 0), (16, 24)), labels
  )


def test_a_window_is_a_part_of_the_canvas(rng):
  """Also of a scaled one: the filter sees the pixels around the window."""
  pixels, labels = blocks(rng, 40, 60)
  image = Image.fromarray(pixels)
  canvas = (90, 60)
  whole = np.asarray(image.resize(canvas, Image.Resampling.BILINEAR))
  corner = (31, 17)
  found = masks.cut(image, canvas, corner, GREY)[..., 0]
  # Pillow rounds a filter's weights per call: one level.
  expected = whole[17 : 17 + 16, 31 : 31 + 24].astype(int)
  assert np.abs(found.astype(int) - expected).max() <= 1
  everything = masks.cut_labels(labels, canvas, (0, 0), (60, 90))
  np.testing.assert_array_equal(
    masks.cut_labels(labels, canvas, corner, (16, 24)),
    everything[17 : 17 + 16, 31 : 31 + 24],
  )


# --- training ---------------------------------------------------------------


def test_masks_follow_their_images(rng):
  """In every crop, grey levels and mask encode the same classes."""
  record = dict(
    zip(('image', 'label'), map(png, blocks(rng, 60, 70, 20)), strict=True)
  ) | {'index': 0}
  recipe = SegmentAugment(RULES, photometric=0.0)
  agreeing, padded = [], 0
  for seed in range(40):
    pixels, patch, labels = recipe.training(
      record, GREY, np.random.default_rng(seed)
    )
    assert patch is None
    assert labels.shape == (16, 24)
    valid = labels != IGNORED
    padded += int((~valid).sum())
    # The mean colour where there is no image.
    assert (pixels[..., 0][~valid] == 128).all()
    read = np.rint((pixels[..., 0].astype(float) - 20) / 60)
    agreeing.append((read == labels)[valid].mean())
  # Levels blend along the edges of squares of 20 pixels, at scales of 1/7 to
  # 2/3: one row of pixels in seven or so.
  assert np.mean(agreeing) > 0.8
  assert padded > 0


def test_flips_happen_to_both(rng):
  pixels, labels = blocks(rng, 16, 24)
  record = {'image': png(pixels), 'label': png(labels), 'index': 0}
  recipe = SegmentAugment(RULES, scale=(1.0, 1.0), photometric=0.0)
  seen = set()
  for seed in range(8):
    found, _, mask = recipe.training(record, GREY, np.random.default_rng(seed))
    flipped = (mask == labels[:, ::-1]).all()
    seen.add(flipped)
    np.testing.assert_array_equal(
      found[..., 0], pixels[:, ::-1] if flipped else pixels
    )
  assert seen == {True, False}


def test_crops_of_one_class_are_drawn_again():
  labels = np.zeros((64, 96), np.uint8)
  labels[:, 60:] = 1
  record = {'image': png(labels), 'label': png(labels), 'index': 0}

  def uniform(most):
    recipe = SegmentAugment(RULES, scale=(4.0, 4.0), most_of_one=most)
    found = [
      recipe.training(record, GREY, np.random.default_rng(seed))[2]
      for seed in range(30)
    ]
    return sum((mask == mask[0, 0]).all() for mask in found)

  assert uniform(0.75) < uniform(1.0)


def test_distortion_is_of_the_generator_alone(rng):
  pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
  first = distort(pixels, 1.0, np.random.default_rng(3))
  np.testing.assert_array_equal(
    first, distort(pixels, 1.0, np.random.default_rng(3))
  )
  changed = [
    (distort(pixels, 1.0, np.random.default_rng(k)) != pixels).any()
    for k in range(20)
  ]
  # Each of four changes has probability 1/2.
  assert sum(changed) > 12
  np.testing.assert_array_equal(distort(pixels, 0.0, rng), pixels)


@pytest.mark.parametrize('seed', range(10))
def test_distortion_leaves_grey_grey(rng, seed):
  """To rounding, and the three digits of the colour axes."""
  grey = np.repeat(rng.integers(0, 256, (5, 6, 1), dtype=np.uint8), 3, axis=-1)
  found = distort(grey, 1.0, np.random.default_rng(seed)).astype(int)
  assert np.ptp(found, axis=-1).max() <= 2


@pytest.mark.parametrize('start, parts', [(2, 1), (0, 2), (2, 2)])
def test_examples_are_of_seed_step_and_place_alone(source, start, parts):
  recipe = SegmentAugment(RULES)
  arguments = (source, np.arange(3), GREY, recipe)

  def batch(step, start=0, **options):
    batches = pipeline.train_batches(
      *arguments, Loading(4, **options), seed=5, start_step=start
    )
    for _ in range(step):
      next(batches)
    return next(batches)

  expected = batch(2)
  assert expected['image'].shape == (4, 16, 24, 1)
  assert expected['label'].shape == (4, 16, 24)
  assert expected['label'].dtype == np.int32
  found = [
    batch(2 - start, start=start, process_index=k, process_count=parts)
    for k in range(parts)
  ]
  for name in ('image', 'label'):
    np.testing.assert_array_equal(
      np.concatenate([part[name] for part in found]), expected[name]
    )


@pytest.mark.parametrize(
  'fields',
  [
    {'scale': (2.0, 1.0)},
    {'scale': (1.0,)},
    {'flip': 1.5},
    {'photometric': -1},
  ],
)
def test_impossible_settings(fields):
  with pytest.raises(UsageError, match=r'config\.segment\.'):
    SegmentAugment(RULES, **fields)


@pytest.mark.parametrize(
  'classes, zero, refused',
  [(255, False, False), (256, False, True), (255, True, True)],
)
def test_the_usual_ignored_number_is_not_a_class(classes, zero, refused):
  if not refused:
    MaskRules(classes, reduce_zero_label=zero)
    return
  with pytest.raises(UsageError, match=r'ignore_index=255 is one of the'):
    MaskRules(classes, reduce_zero_label=zero)
  MaskRules(classes, ignore_index=-1, reduce_zero_label=zero)


# --- sources ----------------------------------------------------------------


def write_folder(
  root,
  rng,
  layout='{split}/{kind}',
  classes=('a', 'b', 'c', 'd'),
  splits=('train', 'val'),
  masks='masks',
):
  for split, count in zip(splits, (3, 2), strict=True):
    for kind in ('images', masks):
      (root / layout.format(split=split, kind=kind)).mkdir(parents=True)
    for k in range(count):
      image, labels = blocks(rng, 16, 24)
      for kind, array in (('images', image), (masks, labels)):
        folder = root / layout.format(split=split, kind=kind)
        (folder / f'{k}.png').write_bytes(png(array))
  if classes:
    (root / 'classes.txt').write_text('\n'.join(classes) + '\n')
  return f'segmentation_folder:{root}'


@pytest.mark.parametrize('layout', ['{split}/{kind}', '{kind}/{split}'])
def test_folders(tmp_path, rng, layout):
  dataset = open_masks(write_folder(tmp_path, rng, layout))
  assert dataset.class_names == ('a', 'b', 'c', 'd')
  assert (len(dataset.train), len(dataset.test)) == (3, 2)
  assert dataset.train.labels.tolist() == [0, 0, 0]
  batch = next(
    pipeline.eval_batches(
      dataset.test, np.arange(2), GREY, Loading(2), SegmentAugment(RULES)
    )
  )
  # Grey levels encode the classes: (60·class + 20) / 127.5 - 1.
  expected = (60 * batch['label'] + 20) / 127.5 - 1
  np.testing.assert_allclose(batch['image'][..., 0], expected, atol=1e-6)


def test_ade20k_as_it_is_unpacked(tmp_path, rng):
  """ADEChallengeData2016: images/training, annotations/training, …."""
  source = write_folder(
    tmp_path,
    rng,
    '{kind}/{split}',
    (),
    ('training', 'validation'),
    'annotations',
  )
  dataset = open_masks(source, 4)
  assert (len(dataset.train), len(dataset.test)) == (3, 2)
  assert dataset.train.describe(0).endswith('images/training/0.png')


def test_check_data_names_bad_masks(tmp_path, rng):
  source = write_folder(tmp_path, rng, classes=('a', 'b', 'c', 'd', 'e'))
  masks_folder = tmp_path / 'train' / 'masks'
  (masks_folder / '1.png').write_bytes(png(np.full((16, 24), 9)))
  (masks_folder / '2.png').write_bytes(png(np.zeros((16, 25))))
  report = check_data(source)
  assert [name[-5:] for name, _ in report.train.broken] == ['1.png', '2.png']
  assert 'class 9, out of range' in report.problems[0]
  assert '25 x 16 pixels' in report.problems[1]
  assert 'class e has no image in train' in report.problems
  assert not report.test.broken
  # Squares of four classes at random: each occurs in most images.
  assert 0 < max(report.test.class_counts) <= 2


def test_folders_that_are_not_whole(tmp_path, rng):
  source = write_folder(tmp_path, rng, classes=())
  with pytest.raises(DataError, match=r'has no classes\.txt'):
    open_masks(source)
  assert open_masks(source, 4).class_names == ('0', '1', '2', '3')
  (tmp_path / 'classes.txt').write_text('one\n')
  with pytest.raises(DataError, match='names 1 classes'):
    open_masks(source, 4)
  (tmp_path / 'classes.txt').write_text('one\ntwo\none\n')
  with pytest.raises(
    DataError, match=r"classes\.txt names the class 'one' twice"
  ):
    open_masks(source)
  (tmp_path / 'classes.txt').write_bytes('gr\u00fcn\n'.encode('latin-1'))
  with pytest.raises(DataError, match=r'classes\.txt is no text in UTF-8'):
    open_masks(source)
  (tmp_path / 'classes.txt').unlink()
  mask = tmp_path / 'train' / 'masks' / '1.png'
  mask.unlink()
  with pytest.raises(DataError, match=r'1\.png is missing, and 0 more'):
    open_masks(source, 4)
  for path in (tmp_path / 'train' / 'images').iterdir():
    path.unlink()
  with pytest.raises(DataError, match='holds no image'):
    open_masks(source, 4)
  with pytest.raises(DataError, match='must hold train/images'):
    open_masks(f'segmentation_folder:{tmp_path}/nothing')
  with pytest.raises(UsageError, match='task=segment'):
    open_dataset(source)
  with pytest.raises(UsageError, match='with task=segment it must be'):
    open_masks('digit')
  with pytest.raises(UsageError, match='give 1 to'):
    MaskRules(0)


def test_scenes_of_digits():
  dataset = open_masks('digits', 4)
  assert dataset.class_names == ('background', '0', '1', '2')
  train, test = dataset.train.places, dataset.test.places
  assert len(train) + len(test) == 178 + 182 + 177
  assert (len(dataset.train), len(dataset.test)) == (8 * len(train), len(test))
  # One digit in two scenes.
  masks = [dataset.train[k]['label'] for k in (5, 5 + len(train))]
  assert set(masks[0].flat) == set(masks[1].flat)
  assert (masks[0] != masks[1]).any()
  assert not set(dataset.train.places) & set(dataset.test.places)
  for split in (dataset.train, dataset.test):
    for index in range(0, len(split), 101):
      record = split[index]
      image, mask = record['image'], record['label']
      assert image.shape == mask.shape == (24, 24)
      # One digit, and brighter than its surroundings.
      assert len(np.unique(mask)) == 2
      assert 0.03 < (mask > 0).mean() < 0.35
      assert image[mask > 0].mean() > 0.5 * 255
      assert image[mask == 0].mean() < 0.4 * 255
      np.testing.assert_array_equal(split[index]['image'], image)
  assert open_masks('digits').num_classes == 11
  with pytest.raises(UsageError, match='have 2 to 11'):
    open_masks('digits', 1)


class TinyScenes(tfds.core.GeneratorBasedBuilder):
  """An image and its mask, named as in TFDS's scene_parse150."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'annotation': tfds.features.Image(encoding_format='png'),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(4),
      'test': self._generate_examples(2),
    }

  def _generate_examples(self, number):
    for key in range(number):
      image = Image.fromarray(np.full((16, 24, 3), 40 * key, np.uint8))
      file = io.BytesIO()
      image.save(file, 'JPEG')
      mask = np.full((16, 24), key, np.uint8)
      file.seek(0)
      yield key, {'image': file, 'annotation': io.BytesIO(png(mask))}


def test_prepared_tfds_masks(tmp_path, monkeypatch):
  TinyScenes(
    data_dir=str(tmp_path), file_format='array_record'
  ).download_and_prepare()
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(DataError, match=r'set config\.segment\.num_classes$'):
    open_masks('tfds:tiny_scenes')
  dataset = open_masks('tfds:tiny_scenes', 3)
  assert (len(dataset.train), len(dataset.test)) == (4, 2)
  rules = MaskRules(3, reduce_zero_label=True)
  colour = Preprocessing((16, 24))
  batch = next(
    pipeline.eval_batches(
      dataset.train, np.arange(4), colour, Loading(4), SegmentAugment(rules)
    )
  )
  # Zero marks no class.
  assert [int(labels[0, 0]) for labels in batch['label']] == [-1, 0, 1, 2]
  with pytest.raises(DataError, match='has the features'):
    open_dataset('tfds:tiny_scenes', str(tmp_path))
