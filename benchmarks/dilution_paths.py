r"""Where λ should lead on a pretrained network: five ways at equal steps.

From the fine-tuned network of `evidence.py` (DINOv2 ViT-S/14 at 56 pixels,
Caltech-101; its cache is used), NOSE's 5 of 12 attention layers go by one of

  identity     towards x + x, the paper's way: λ falls over 3/4 of the steps
  absent       towards x, likewise
  maps         towards closed-form maps, MLPs refitted, over 1/3 of the steps
  maps absent  so in the first half of the steps; in the second the maps fade
  dense        nothing goes; what the others are compared with

each in 100, 300 or 1,000 steps of 32 images (with 0, at once), by labels alone or
half by the soft targets of the network that they start from.

  python benchmarks/dilution_paths.py --weights=DIR/dinov2_vits14.safetensors \
    --data=image_folder:DIR/caltech101 --cache=DIR/cache [--paths …] [--steps 100]

Top-1 on all test images, with the paired 95% interval of the difference to `dense`
with the same steps, loss and learning rate. Finished rows are kept; 100 steps take
three minutes on one core. Writes docs/benchmarks/dilution_paths.json.
"""

import argparse
import dataclasses
import pathlib
import time
from typing import Any

import common
import evidence
import numpy as np

import lambda_vit_jax as lv
from lambda_vit_jax.models.model import Model

OUTPUT = common.RESULTS / 'dilution_paths.json'
PATHS = ('dense', 'maps', 'maps absent', 'absent', 'identity')
LOSSES = {'soft': 'soft', 'labels': 'none'}
SHARE = {'identity': 0.75, 'absent': 0.75, 'maps': 1 / 3, 'maps absent': 1 / 3}
STEPS = (100, 300, 1000)
SEED = 0


class Paths:
  """The rows, and what they share."""

  def __init__(self, options: argparse.Namespace):
    self._options = options
    self._recipe = evidence.recipe_of(options)
    self._table = evidence.Table(options, SEED)
    self._dense = self._table.dense
    self._layers = self._table.layers('nose')

  def row(self, path: str, loss: str, steps: int) -> None:
    """Computes one row, unless it is there."""
    key = f'{path}, {loss}, {steps}, {self._recipe.more_learning_rate:g}'
    # At once, maps that fade are `absent`.
    same = path == 'maps absent' and not steps
    if same or key in common.read(self._options.output).get('rows', {}):
      return
    start = time.perf_counter()
    recipe = dataclasses.replace(self._recipe, distill=LOSSES[loss])
    if steps:
      model = self._led(path, self._images(recipe, steps), recipe, steps)
    else:
      model = self._towards(path)
    score = self._table.score(key, model)
    dense = self._options.cache / f'{key.replace(path, "dense")}.npy'
    reference = dataclasses.replace(score, correct=np.load(dense))
    found = {
      'top1': score.top1,
      'change': score.minus(reference),
      'speedup': self._dense.macs(executed=True) / model.macs(executed=True),
      'removed': model.removed_layers,
      'seconds': round(time.perf_counter() - start),
    }
    print(key, found, flush=True)
    output = common.read(self._options.output)
    shared = dataclasses.asdict(self._recipe)
    del shared['more_learning_rate'], shared['distill']  # Those of a row.
    output |= common.provenance() | {
      'recipe': shared,
      'layers': self._layers,
      'image_size': self._options.image_size,
      'train_images': len(self._table.train.labels),
      'test_images': len(score.correct),
    }
    output.setdefault('rows', {})[key] = found
    common.write(self._options.output, output)

  def _images(
    self, recipe: evidence.Recipe, steps: int
  ) -> dict[str, np.ndarray]:
    """Those of so many steps."""
    images, train = steps * recipe.batch_size, self._table.train
    copies = -(-images // len(train.labels))
    arrays = evidence.augmented(train, self._dense, copies, 2000 + SEED)
    return {name: values[:images] for name, values in arrays.items()}

  def _led(
    self,
    path: str,
    arrays: dict[str, np.ndarray],
    recipe: evidence.Recipe,
    steps: int,
  ) -> Model:
    """The network at the end of a path."""
    if path == 'dense':
      return evidence.fine_tune(self._dense, arrays, recipe, SEED, self._dense)
    if path != 'maps absent':
      towards = self._towards(path)
      return self._dilute(self._dense, towards, arrays, recipe, path, steps)
    maps = self._towards('maps')
    middle = steps // 2 * recipe.batch_size
    first, second = (
      {name: values[part] for name, values in arrays.items()}
      for part in (slice(middle), slice(middle, None))
    )
    mapped = self._dilute(self._dense, maps, first, recipe, path, steps // 2)
    bare = lv.prune(mapped, self._layers, 'absent')
    return self._dilute(
      mapped, bare, second, recipe, 'absent', steps - steps // 2
    )

  def _towards(self, path: str) -> Model:
    """The network at the end of a path, nothing trained."""
    if path == 'dense':
      return self._dense
    if path != 'maps':
      mode = 'identity' if path == 'identity' else 'absent'
      return lv.prune(self._dense, self._layers, mode)
    return lv.linearize(
      self._dense,
      [self._table.images],
      self._layers,
      inputs=evidence.INPUTS,
      refit=True,
    )

  def _dilute(
    self,
    model: Model,
    towards: Model,
    arrays: dict[str, np.ndarray],
    recipe: evidence.Recipe,
    path: str,
    total: int,
  ) -> Model:
    steps = max(1, round(SHARE[path] * total))
    return recipe.led(
      model,
      towards,
      arrays,
      (steps, total - steps),
      teacher=self._dense,
      seed=SEED,
      what=path,
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--weights', required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--cache', required=True, type=pathlib.Path)
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  parser.add_argument('--paths', nargs='+', choices=PATHS, default=PATHS)
  parser.add_argument('--losses', nargs='+', choices=LOSSES, default=LOSSES)
  parser.add_argument('--steps', nargs='+', type=int, default=STEPS)
  parser.add_argument(
    '--learning-rate', type=float, default=evidence.Recipe.more_learning_rate
  )
  parser.add_argument('--images', type=int, help='of each split, for a trial')
  options: Any = parser.parse_args()
  options.epochs, options.more_epochs = 2, 3
  options.image_size = evidence.IMAGE_SIZE
  paths = Paths(options)
  for steps in options.steps:
    for loss in options.losses:
      for path in options.paths:
        paths.row(path, loss, steps)


if __name__ == '__main__':
  main()
