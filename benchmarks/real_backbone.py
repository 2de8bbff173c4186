r"""Attention layers of a real backbone replaced without training.

DINOv2 ViT-S at 112 pixels with a fixed linear probe (multinomial, on dense
class-token features, its penalty chosen on training images). Every fit and choice
sees 512 unlabelled training images; accuracy is that of all test images, with the
paired 95% interval of the difference to the dense network.

  python benchmarks/real_backbone.py --name=caltech101 \
    --weights=DIR/dinov2_vits14.safetensors --data=image_folder:DIR/caltech101 \
    --cache=DIR/cache

A backbone that was fine-tuned first, with its own head: `evidence.py --rows`, no row
named, with the cache DIR/cache/NAME, exports it there as `dense`; then here
`--dense=DIR/cache/NAME/dense`.

Finished rows are kept, so the script resumes where it was stopped. Writes
docs/benchmarks/real_backbone.json, one entry per name.
"""

import argparse
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import common
import jax
import numpy as np
import real_network
from real_network import Split

import lambda_vit_jax as lv
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.training_free.linear_maps import (
  LinearizeOptions,
  fit_linear,
)
from lambda_vit_jax.training_free.polish import CROP_AREA

OUTPUT = common.RESULTS / 'real_backbone.json'
VARIANT, IMAGE_SIZE = 'vit_small_patch14_dinov2', 112
IMAGES = 512
TODAY = ('token', 'mean', 'class_map')
KINDS: dict[str, dict[str, Any]] = {
  'skip': {'maps': False},
  'skip refit': {'maps': False, 'refit': True},
  'token': {'inputs': ('token',)},
  'own output': {'inputs': TODAY, 'target': 'attention'},
  'stream': {'inputs': TODAY},
  'stream refit': {'inputs': TODAY, 'refit': True},
  # The images and their mirrored copies, and random crops as well.
  'stream refit mirrored': {'inputs': TODAY, 'refit': True, 'copies': 2},
  'stream refit mirrored polish': {
    'inputs': TODAY,
    'refit': True,
    'copies': 2,
    'polish_steps': 300,
  },
  'stream refit crops': {'inputs': TODAY, 'refit': True, 'copies': 4},
  'stream refit crops polish': {
    'inputs': TODAY,
    'refit': True,
    'copies': 4,
    'polish_steps': 300,
    'polish_copies': 16,
  },
  # With other crops in every step, as `lv.polish` takes them.
  **{
    f'stream refit mirrored views {steps}': {
      'inputs': TODAY,
      'refit': True,
      'copies': 2,
      'polish_steps': steps,
      'crop_area': CROP_AREA,
    }
    for steps in (300, 600)
  },
  'neighbours': {'inputs': (*TODAY, 'neighbours')},
  'recentred': {'inputs': TODAY, 'recentre': True},
  'neighbours positions': {'inputs': (*TODAY, 'neighbours', 'positions')},
  'mixing': {'inputs': (*TODAY, 'mixing')},
  'mixing positions': {'inputs': (*TODAY, 'positions', 'mixing')},
  'auto': {'inputs': 'auto'},
  'auto to attention': {'inputs': 'auto:1'},
  'mixing refit': {'inputs': (*TODAY, 'mixing'), 'refit': True},
  'mixing positions refit': {
    'inputs': (*TODAY, 'positions', 'mixing'),
    'refit': True,
  },
  'mixing positions refit polish': {
    'inputs': (*TODAY, 'positions', 'mixing'),
    'refit': True,
    'polish_steps': 300,
  },
  'stream polish': {'inputs': TODAY, 'polish_steps': 300},
  'stream refit polish': {
    'inputs': TODAY,
    'refit': True,
    'polish_steps': 300,
  },
  'mixing polish': {'inputs': (*TODAY, 'mixing'), 'polish_steps': 300},
}
# The options of `nose.nose`, or the blocks themselves, in order.
CHOICES: dict[str, dict[str, Any] | tuple[int, ...]] = {
  'given': (0, 1, 2, 3, 6),
  'first': {'criterion': 'first'},
  'last': {'criterion': 'last'},
  'cosine': {'criterion': 'cosine'},
  'affine': {'criterion': 'affine'},
  'canonical': {'criterion': 'canonical'},
  'output': {'criterion': 'output', 'inputs': ('token', 'mean')},
  # The same, each candidate with the maps of the rows `mixing positions`.
  'output mixing': {
    'criterion': 'output',
    'inputs': (*TODAY, 'positions', 'mixing'),
  },
  'transfer_entropy': {'criterion': 'transfer_entropy'},
  'transfer_entropy absolute': {
    'criterion': 'transfer_entropy',
    'sign': 'absolute',
  },
}
MOST = 6


class Table:
  """Rows by key; computed when first asked for."""

  def __init__(
    self,
    name: str,
    dense: Model,
    train: Split,
    test: Split,
    cache: pathlib.Path,
    output: pathlib.Path = OUTPUT,
  ):
    self.dense = dense
    self._train, self._test = train, test
    outputs = real_network.cached(
      cache / 'dense_test.npz',
      lambda: dict(
        zip(
          ('logits', 'features'),
          real_network.outputs(dense, test),
          strict=True,
        )
      ),
    )
    self._logits, self._features = outputs['logits'], outputs['features']
    self._output = output
    self._all = common.read(output)
    self._name = name
    self._rows = self._all.setdefault(name, {}).setdefault('rows', {})

  def _drawn(self, number: int) -> Split:
    draw = np.random.default_rng(100 + number)
    order = draw.permutation(len(self._train.labels))
    return self._train.take(order[:IMAGES])

  def draw(self, number: int) -> np.ndarray:
    """512 training images as the model takes them."""
    return self._drawn(number).images(self.dense)

  def copies(self, number: int, count: int) -> np.ndarray:
    """The images of `draw`, and variations of them (`real_network.varied`)."""
    return real_network.varied(self._drawn(number), count).images(self.dense)

  def labels(self, number: int) -> np.ndarray:
    """Those of the images of `draw`."""
    return self._drawn(number).labels

  def everything(self) -> np.ndarray:
    """All training images as the model takes them."""
    return self._train.images(self.dense)

  def has(self, key: str) -> bool:
    return key in self._rows

  def row(self, key: str, compute: Callable[[], dict[str, Any]]) -> Any:
    if key not in self._rows:
      start = time.perf_counter()
      self._rows[key] = compute()
      self._rows[key]['seconds'] = round(time.perf_counter() - start)
      self._all[self._name] |= {
        **common.provenance(),
        'images': IMAGES,
        'test_images': len(self._test.labels),
        'dense_top1': float(self._right(self._logits).mean()),
        'dense_macs': self.dense.macs(executed=True),
      }
      common.write(self._output, self._all)
      print(key, self._rows[key], flush=True)
    return self._rows[key]

  def _right(self, logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=1) == self._test.labels

  def answers(self, program: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """What a program's logits on the test images are worth."""
    logits = [
      np.asarray(program(images)) for images in self._test.batches(self.dense)
    ]
    return self._compared(np.concatenate(logits)[: len(self._test.labels)])

  def _compared(self, logits: np.ndarray) -> dict[str, Any]:
    """Accuracy, and how far logits are from the dense ones."""
    right = self._right(logits).astype(float)
    change = right - self._right(self._logits)
    spread = 1.96 * change.std() / np.sqrt(len(change))
    dense, found = (jax.nn.log_softmax(z) for z in (self._logits, logits))
    return {
      'top1': float(right.mean()),
      'change': [float(change.mean()), float(spread)],
      'kl': float((np.exp(dense) * (dense - found)).sum(axis=1).mean()),
    }

  def score(self, model: Model) -> dict[str, Any]:
    """Accuracy, and how far logits and class features are from the dense ones."""
    logits, features = real_network.outputs(model, self._test)
    gap = ((features - self._features) ** 2).sum()
    centred = self._features - self._features.mean(axis=0)
    return {
      **self._compared(logits),
      'feature_error': float(gap / (centred**2).sum()),
      'macs_executed': model.macs(executed=True),
      'parameters': model.num_parameters,
    }


def searched(
  table: Table, draw: int, name: str, how: dict[str, Any], most: int
) -> tuple[int, ...]:
  """The layers of a criterion in the order of their removal."""
  images = {'image': table.draw(draw), 'label': table.labels(draw)}
  found = table.row(
    f'{draw} {name} order',
    lambda: {
      'order': list(
        lv.nose(
          table.dense,
          [images],
          num_layers=most,
          resamples=0,
          warn=lambda line: None,
          **how,
        ).order
      )
    },
  )
  return tuple(found['order'])


def order_of(table: Table, choice: str, draw: int) -> tuple[int, ...]:
  """The blocks of a choice, in order."""
  how = CHOICES[choice]
  if isinstance(how, tuple):
    return how
  return searched(table, draw, choice, how, MOST)


def fitted(
  table: Table, draw: int, layers: Sequence[int], kind: str
) -> dict[str, Any]:
  """The row of a network without the attention of some blocks."""
  how = dict(KINDS[kind])
  steps = how.pop('polish_steps', 0)
  # Whole images but where a kind says so.
  area = how.pop('crop_area', 1.0)
  copies = how.pop('copies', 1)
  polish_copies = how.pop('polish_copies', copies)
  images = [table.draw(draw)]
  if copies > 1:
    images = [table.copies(draw, copies)]
  start = time.perf_counter()
  options = LinearizeOptions(**how)
  model = fit_linear(table.dense, images, layers, options).model
  if polish_copies > copies:
    images = [table.copies(draw, polish_copies)]
  if steps:
    model = lv.polish(model, table.dense, images, steps=steps, crop_area=area)
  return {
    'layers': sorted(layers),
    'fit_seconds': round(time.perf_counter() - start, 1),
    **table.score(model),
  }


def write_row(
  table: Table, draw: int, choice: str, count: int, kind: str
) -> None:
  order = order_of(table, choice, draw)
  if count <= len(order):
    table.row(
      f'{draw} {choice} {count} {kind}',
      lambda: fitted(table, draw, order[:count], kind),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Which network and data, and how often."""
  parser.add_argument('--name', required=True)
  parser.add_argument('--weights', required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--cache', required=True, type=pathlib.Path)
  parser.add_argument('--dense', help='a fine-tuned network, exported')
  parser.add_argument('--draws', nargs='+', type=int, default=[0, 1, 2])
  parser.add_argument('--variant', default=VARIANT)
  parser.add_argument('--image-size', type=int, default=IMAGE_SIZE)


def open_table(
  options: argparse.Namespace, output: pathlib.Path
) -> tuple[Table, pathlib.Path]:
  """The rows of a network and a data set, and the folder of its cache."""
  cache = options.cache / options.name
  backbone = lv.load_pretrained(
    options.weights,
    variant=options.variant,
    num_classes=0,
    image_size=options.image_size,
  )
  train, test, classes = real_network.read_data(options.data, backbone, cache)
  if options.dense:
    dense = lv.load_export(options.dense)
  else:
    dense = real_network.with_probe(backbone, train, classes, cache)
  return Table(options.name, dense, train, test, cache, output), cache


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add_arguments(parser)
  parser.add_argument('--counts', nargs='+', type=int, default=[3, 5, 6])
  parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS)
  parser.add_argument('--choices', nargs='+', choices=CHOICES, default=CHOICES)
  options = parser.parse_args()
  table, _ = open_table(options, OUTPUT)
  # The outermost loop over draws: each finishes a table of its own.
  for draw in options.draws:
    for choice in options.choices:
      for count in options.counts:
        for kind in options.kinds:
          write_row(table, draw, choice, count, kind)


if __name__ == '__main__':
  main()
