"""Sliding windows against single windows, plain loops and scikit-learn."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.core.images import normalise
from lambda_vit_jax.core.preprocessing import IGNORED, Preprocessing
from lambda_vit_jax.data.decode import UndecodableError
from lambda_vit_jax.data.masks import MaskRules
from lambda_vit_jax.evaluation import sliding_windows
from lambda_vit_jax.evaluation.sliding_windows import Windowing
from tests.support.mask_sources import Source, blocks, png
from tests.support.processes import run_processes

CLASSES = 4
SQUARE = Preprocessing((24, 24), (0.5,), (0.5,), 1.0, 'bilinear')
RULES = MaskRules(CLASSES)
SIZES = ((24, 24), (24, 50), (61, 33), (17, 12), (40, 24), (48, 48))


def make_source():
  rng = np.random.default_rng(0)
  records = []
  for size in SIZES:
    image, labels = blocks(rng, *size)
    labels[rng.random(size) < 0.1] = 255
    records.append((png(image), png(labels)))
  return Source(records)


@pytest.fixture
def source():
  return make_source()


def place(window):
  """A smooth pattern of the window's own, so that its place matters."""
  rows, columns = np.mgrid[: window[0], : window[1]]
  return np.stack(
    [np.sin(0.2 * k * rows + 0.3 * (3 - k) * columns) for k in range(CLASSES)],
    axis=-1,
  )


def predict(images):
  """Each class likes its level, and places of the window."""
  levels = (60 * np.arange(CLASSES) + 20) / 127.5 - 1
  logits = -4.0 * np.abs(images - levels) + place(images.shape[1:3])
  return logits.astype(np.float32)


def run(source, windowing, batch_size=3, kept=None, part=slice(None)):
  canvases = (
    sliding_windows.make_canvas(source, k, SQUARE, RULES, windowing)
    for k in range(len(source))[part]
  )

  def checked(images):
    assert images.shape == (batch_size, 24, 24, 1)
    return predict(images)

  return sliding_windows.evaluate(
    checked,
    canvases,
    SQUARE,
    CLASSES,
    batch_size,
    keep=lambda index, labels, matrix: (
      None if kept is None else kept.update({index: labels})
    ),
  )


def slowly(source, index, windowing):
  """Pixel by pixel in float64, from the same canvas."""
  canvas = sliding_windows.make_canvas(source, index, SQUARE, RULES, windowing)
  width, height = canvas.size
  total = np.zeros((max(height, 24), max(width, 24), CLASSES))
  count = np.zeros(total.shape[:2])
  for (left, top), pixels in zip(canvas.corners, canvas.windows, strict=True):
    array = np.empty(pixels.shape, np.float32)
    normalise(pixels, SQUARE, array)
    total[top : top + 24, left : left + 24] += predict(array[None])[0]
    count[top : top + 24, left : left + 24] += 1
  mean = (total / np.maximum(count, 1)[..., None])[:height, :width]
  assert (count[:height, :width] > 0).all()
  rows, columns = canvas.labels.shape
  y = (np.arange(rows) + 0.5) * height / rows - 0.5
  x = (np.arange(columns) + 0.5) * width / columns - 0.5
  down = np.empty((rows, width, CLASSES))
  for j in range(width):
    for c in range(CLASSES):
      down[:, j, c] = np.interp(y, np.arange(height), mean[:, j, c])
  found = np.empty((rows, columns, CLASSES))
  for i in range(rows):
    for c in range(CLASSES):
      found[i, :, c] = np.interp(x, np.arange(width), down[i, :, c])
  return canvas, found


@pytest.mark.parametrize(
  'mode, stride', [('whole', 16), ('slide', 16), ('slide', 7)]
)
def test_windows_are_averaged_and_interpolated(source, mode, stride):
  windowing = Windowing(mode, (stride, stride))
  kept = {}
  scores = run(source, windowing, kept=kept)
  truth, guess = [], []
  for index in range(len(source)):
    canvas, logits = slowly(source, index, windowing)
    best = np.sort(logits, axis=-1)
    # Only where float32 resolves the difference of the two best classes.
    clear = best[..., -1] - best[..., -2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(kept[index][clear], logits.argmax(-1)[clear])
    valid = canvas.labels != IGNORED
    truth.append(canvas.labels[valid])
    guess.append(kept[index][valid])
  truth, guess = np.concatenate(truth), np.concatenate(guess)
  # The scores are scikit-learn's, at the size of the stored images.
  iou = metrics.jaccard_score(truth, guess, average='macro')
  assert scores['mean_iou'] == pytest.approx(iou)
  assert scores['pixel_accuracy'] == pytest.approx((truth == guess).mean())
  assert scores['num_pixels'] == len(truth)
  assert scores['num_images'] == len(SIZES)


def test_one_window_is_the_whole_image(source):
  """Where the image has the window's proportions, exactly."""
  square = Source([source.records[k] for k in (0, 5)])
  whole, slide = {}, {}
  first = run(square, Windowing('whole', (16, 16)), kept=whole)
  second = run(square, Windowing('slide', (16, 16)), kept=slide)
  assert first == second
  for index in whole:
    np.testing.assert_array_equal(whole[index], slide[index])
  # Of the first, whose size is the window's, they are the network's own.
  canvas = sliding_windows.make_canvas(
    square, 0, SQUARE, RULES, Windowing('whole', (16, 16))
  )
  array = np.empty((1, 24, 24, 1), np.float32)
  normalise(canvas.windows[0], SQUARE, array[0])
  np.testing.assert_array_equal(whole[0], predict(array)[0].argmax(-1))
  # And of others not.
  oblong = Source([source.records[1]])
  assert run(oblong, Windowing('whole', (16, 16))) != run(
    oblong, Windowing('slide', (16, 16))
  )


@pytest.mark.parametrize('batch_size', [4, 64])
def test_the_batch_size_of_windows_does_not_matter(source, batch_size):
  windowing = Windowing('slide', (10, 10))
  expected = run(source, windowing, batch_size=1)
  assert run(source, windowing, batch_size) == expected


@pytest.mark.slow
def test_two_processes_find_the_same(source):
  """Also where one of them has more windows, and so calls more often."""
  program = (
    'import sys\n'
    'from lambda_vit_jax.runtime import processes\n'
    'index = int(sys.argv[2])\n'
    'processes.join(sys.argv[1], 2, index)\n'
    'from tests.evaluation import test_sliding_windows as t\n'
    'part = slice(0, 4) if index else slice(4, 6)\n'
    "windowing = t.Windowing('slide', (10, 10))\n"
    'found = t.run(t.make_source(), windowing, part=part)\n'
    'processes.leave()\n'
    "print(found['mean_iou'], found['num_images'], sep=',')\n"
  )
  expected = run(source, Windowing('slide', (10, 10)))
  for word in run_processes(program):
    iou, images = word.split(',')
    assert float(iou) == expected['mean_iou']
    assert int(images) == len(SIZES)


def test_a_shape_more_compiles_nothing(rng, compilations):
  """Sizes that round up alike share their program."""
  windowing = Windowing('whole', (16, 16))

  def one(height, width):
    image, labels = blocks(rng, height, width)
    run(Source([(png(image), png(labels))]), windowing)

  one(33, 40)
  before = compilations()
  one(35, 47)
  assert compilations() == before


def test_bad_input_is_named(source):
  windowing = Windowing('whole', (16, 16))
  image, _ = source.records[0]
  wrong = Source([(image, png(np.zeros((24, 25))))])
  with pytest.raises(DataError, match='record 0: its mask has 25 x 24'):
    run(wrong, windowing)
  file = io.BytesIO()
  Image.new('L', (24, 24)).save(file, 'PNG')
  broken = Source([(file.getvalue()[:50], png(np.zeros((24, 24))))])
  with pytest.raises(UndecodableError, match='record 0 cannot be decoded'):
    run(broken, windowing)
  with pytest.raises(UsageError, match='whole or slide'):
    Windowing('both', (1, 1))
  with pytest.raises(UsageError, match='leave gaps beyond 24'):
    Windowing.of('slide', 25, (24, 30))
  assert Windowing.of('slide', None, (512, 24)).stride == (341, 16)
  assert dataclasses.asdict(Windowing.of('whole', 5, (24, 30)))['stride'] == (
    5,
    5,
  )
