"""Commands that need no config: `predict`, `models`, `check-data`."""

import argparse
import io
import json
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import rich.table
from etils import epath

from lambda_vit_jax.cli.console import stdout_console
from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.models.build import make_module
from lambda_vit_jax.models.macs import size_of
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import VARIANTS
from lambda_vit_jax.runtime import startup
from lambda_vit_jax.runtime.progress import Reporter

_TOP = 5


class _Parser(argparse.ArgumentParser):
  """Raises instead of exiting, so that `main` owns exit codes."""

  def __init__(self, command: str):
    super().__init__(prog=command, add_help=False)
    self.add_argument('--json', action='store_true')
    self.add_argument('--quiet', action='store_true')

  def error(self, message: str) -> NoReturn:
    raise UsageError(
      f'{self.prog}: {message}; see lambda-vit {self.prog} --help'
    )


def _window(data: bytes, model: Model) -> tuple[np.ndarray, tuple[int, int]]:
  """The model's input as in evaluation, and (height, width) of its image."""
  from lambda_vit_jax.data import masks, transforms

  preprocessing = model.preprocessing
  window = preprocessing.image_size
  if model.module.segmentation is None:
    return transforms.evaluation_array(data, preprocessing), window
  image = transforms.load(transforms.open_image(data), preprocessing.channels)
  width, height = masks.scaled(image.size, masks.fitting(image.size, window))
  pixels = masks.cut(image, (width, height), (0, 0), preprocessing)
  array = np.empty(pixels.shape, np.float32)
  transforms.normalise(pixels, preprocessing, array)
  return array, (height, width)


def _read_image(path: str, model: Model) -> tuple[np.ndarray, tuple[int, int]]:
  from PIL import Image

  from lambda_vit_jax.data.transforms import UndecodableError

  try:
    data = epath.Path(path).read_bytes()
  except OSError as error:
    raise DataError(
      f'{path}: cannot be read ({error.strerror or error})'
    ) from error
  try:
    found = _window(data, model)
  except UndecodableError as error:
    raise DataError(f'{path}: not a readable image ({error})') from error
  try:
    # Decoding reads over a PNG's checksums where the pixels suffice.
    with Image.open(io.BytesIO(data)) as image:
      image.verify()
  except Exception as error:
    # Pillow raises many kinds for what it cannot parse.
    raise DataError(f'{path}: a damaged image ({error})') from error
  return found


def top_classes(
  model: Model, images: np.ndarray, size: tuple[int, int] | None = None
) -> list[dict[str, float]]:
  """The most probable classes of each image, best first.

  Args:
    model: with a head, or with a decoder: a class then has the share of the
      pixels where it is the most probable.
    images: `[batch, height, width, channels]` float32, normalised.
    size: (height, width) of the pixels that a decoder's shares are of, from
      the first; all of them by default.

  Returns:
    Per image at most five `{class name: probability}`.
  """
  logits = np.asarray(model(images), np.float64)
  if model.module.segmentation is not None:
    height, width = size or images.shape[1:3]
    best = logits[:, :height, :width].argmax(axis=-1)
    found = best[..., None] == np.arange(logits.shape[-1])
    probabilities = found.mean(axis=(1, 2))
  else:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
  names = model.class_names or tuple(map(str, range(model.num_classes)))
  order = np.argsort(-probabilities, axis=-1, kind='stable')[:, :_TOP]
  return [
    {names[k]: float(row[k]) for k in best}
    for row, best in zip(probabilities, order, strict=True)
  ]


def predict(argv: Sequence[str]) -> None:
  """`predict --model=EXPORT_DIR IMAGE…`: the five best classes per image.

  Raises:
    DataError: an image that cannot be read; named.
    UsageError: a model without a head, or a wrong command line.
  """
  from lambda_vit_jax.checkpoints.load import load_pretrained

  parser = _Parser('predict')
  parser.add_argument('--model', required=True)
  parser.add_argument('images', nargs='+')
  options = parser.parse_args(argv)
  startup.use_cache()
  model = load_pretrained(options.model)
  if not model.num_classes:
    raise UsageError(f'--model={options.model}: has no head to predict with')
  # Read everything first: a bad name fails before anything is printed.
  images = [_read_image(path, model) for path in options.images]
  # One image at a time: one compilation whatever the number of images.
  results = {
    path: top_classes(model, image[None], size)[0]
    for path, (image, size) in zip(options.images, images, strict=True)
  }
  if options.json:
    print(json.dumps(results))
    return
  for path, best in results.items():
    print(path)
    for name, probability in best.items():
      print(f'  {100 * probability:6.2f}%  {name}')


def models(argv: Sequence[str]) -> None:
  """`models [--filter=TEXT]`: the table of variants.

  Raises:
    UsageError: nothing matches, or a wrong command line.
  """
  parser = _Parser('models')
  parser.add_argument('--filter', default='')
  options = parser.parse_args(argv)
  rows: list[dict[str, Any]] = []
  for name, variant in sorted(VARIANTS.items()):
    if options.filter not in name:
      continue
    module = make_module(variant)
    model = Model(module, {}, name, variant.preprocessing(module.image_size))
    rows.append(
      {
        'name': name,
        'parameters': size_of(module),
        'macs': model.macs(),
        'image_size': variant.image_size,
        'tokens': module.num_tokens,
        'weights': variant.weights,
      }
    )
  if not rows:
    raise UsageError(f'--filter={options.filter}: no variant has this in it')
  if options.json:
    print(json.dumps(rows))
    return
  heads = ('name', 'parameters', 'MACs', 'pixels', 'tokens', 'weights')
  table = rich.table.Table(*heads)
  for row in rows:
    millions = f'{row["parameters"] / 1e6:.2f} M'
    macs = f'{row["macs"] / 1e9:.2f} G'
    name, _, _, *rest = map(str, row.values())
    table.add_row(name, millions, macs, *rest)
  stdout_console().print(table)


def check_data(argv: Sequence[str]) -> None:
  """`check-data SOURCE`: reads a data set once and reports what it found.

  Raises:
    DataError: a data set that cannot be opened, or one with problems.
    UsageError: a wrong command line.
  """
  from lambda_vit_jax.data import check

  parser = _Parser('check-data')
  parser.add_argument('source')
  options = parser.parse_args(argv)
  reporter = Reporter(options.quiet)
  with reporter.bar('check-data', 100) as bar:
    report = check.check_data(
      options.source,
      progress=lambda done, total: bar.update(100 * done // max(total, 1)),
    )
  if options.json:
    print(json.dumps(report.to_json()))
  else:
    stdout_console().print(report)
  if report.problems:
    raise DataError(
      f'{options.source}: {len(report.problems)} problems, the first: '
      f'{report.problems[0]}'
    )


COMMANDS = {'predict': predict, 'models': models, 'check-data': check_data}
