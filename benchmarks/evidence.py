r"""A real backbone, fine-tuned: dense and smaller networks at equal further steps.

DINOv2 ViT-S/14 on Caltech-101, at 56 pixels unless `--image-size` says otherwise (a
cache and an output for each size). A linear probe starts the head, and
all parameters are fine-tuned for some epochs: `dense`. Every row then takes the
same further steps from that network, on the same images (flipped and shifted by
up to 4 pixels), with the same learning rate, batch and loss, whose teacher is
`dense`:

  dense more      nothing is removed; what the others are compared with
  compress 1.5    `lv.compress` on 512 unlabelled training images and `lv.refit`,
                  then `lv.dilute` towards that network; likewise compress 2
  nose maps       NOSE's 5 of 12 attention layers, closed-form maps in their place,
                  MLPs refitted, then `lv.dilute` towards that
  nose identity   the same layers by the paper's path, towards x + x
  nose absent     the same layers towards x
  output maps     the 5 layers of the criterion `output`, as `nose maps`
  last maps       the last 5 layers, as `nose maps`
 … direct        the smaller network of a row above trained for all further steps with
                  the same teacher, without a dilution; `tokens`: also merged
  … streams       a row above whose loss also follows the teacher's stream after
                  every block

  python benchmarks/evidence.py --weights=DIR/dinov2_vits14.safetensors \
    --data=image_folder:DIR/caltech101 --cache=DIR/cache [--rows …] [--seeds 0 1]

Top-1 on all test images, before the further steps and after them, with the paired
95% interval of the difference to `dense more` of the same seed. Finished rows, and
the dense network, are kept, so the script resumes where it was stopped; a row takes
about a quarter of an hour on one core. Writes docs/benchmarks/evidence.json.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import common
import numpy as np
import real_network
from real_network import Split

import lambda_vit_jax as lv
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.training import in_memory, optim
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Job, Phase
from lambda_vit_jax.training.step import LossSettings

OUTPUT = common.RESULTS / 'evidence.json'
VARIANT, IMAGE_SIZE = 'vit_small_patch14_dinov2', 56
CALIBRATION, NUM_LAYERS = 512, 5
SHIFT = 4
INPUTS = ('token', 'mean', 'class_map')
SPEEDUPS = {'compress 1.5': 1.5, 'compress 2': 2.0}
CHOICES: dict[str, dict[str, Any]] = {
  'nose': {'criterion': 'transfer_entropy'},
  'output': {'criterion': 'output', 'inputs': ('token', 'mean')},
  'last': {'criterion': 'last'},
}
ROWS = (
  'dense more',
  *SPEEDUPS,
  'nose maps',
  'nose identity',
  'output maps',
  'nose absent',
  'last maps',
  'compress 1.5 direct',
  'compress 2 direct',
  'compress 1.5 tokens direct',
  'compress 2 tokens direct',
  'compress 1.5 streams',
  'compress 2 streams',
  'nose maps streams',
)
_STREAMS = ' streams'
_DIRECT, _TOKENS = ' direct', ' tokens'
PARTS = ('attention', 'neurons', 'blocks')
# λ falls over this share of the further steps. Towards x + x it is the paper's,
# 300 of 400 epochs; a stand-in that is close to the network needs less of them.
SHARES = {'identity': 0.75, 'absent': 0.75}
SHARE = 0.33


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What all rows share."""

  epochs: int
  more_epochs: int
  batch_size: int = 32
  learning_rate: float = 1e-4
  more_learning_rate: float = 5e-5
  weight_decay: float = 0.05
  layer_decay: float = 0.75
  distill: str = 'soft'
  distill_weight: float = 0.5

  def led(
    self,
    model: Model,
    towards: Model,
    arrays: dict[str, np.ndarray],
    steps: tuple[int, int],
    *,
    teacher: Model,
    seed: int,
    what: str,
  ) -> Model:
    """`lv.dilute` with these settings, over (falling, further) steps."""
    return lv.dilute(
      model,
      [arrays],
      towards,
      steps=steps[0],
      settle_steps=steps[1],
      teacher=teacher,
      distill=self.distill,
      distill_weight=self.distill_weight,
      learning_rate=self.more_learning_rate,
      weight_decay=self.weight_decay,
      batch_size=self.batch_size,
      seed=seed,
      on_progress=show(what),
    )


def recipe_of(options: argparse.Namespace) -> Recipe:
  """What the command line says of it."""
  return Recipe(
    options.epochs,
    options.more_epochs,
    more_learning_rate=options.learning_rate,
  )


def augmented(
  split: Split, model: Model, copies: int, seed: int
) -> dict[str, np.ndarray]:
  """Every image so many times, flipped or not and shifted, normalised.

  A copy of its own for each epoch: what `lv.dilute` takes is in memory.
  """
  draw = np.random.default_rng(seed)
  border = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
  padded = np.pad(split.pixels, border, 'reflect')
  height, width = split.pixels.shape[1:3]
  found = []
  for _ in range(copies):
    tops, lefts = draw.integers(0, 2 * SHIFT + 1, (2, len(padded)))
    flips = draw.choice((1, -1), len(padded))
    rows = zip(padded, tops, lefts, flips, strict=True)
    moved = [p[y : y + height, x : x + width][:, ::s] for p, y, x, s in rows]
    found.append(Split(np.stack(moved), split.labels).images(model))
  return {
    'image': np.concatenate(found),
    'label': np.tile(split.labels, copies),
  }


def fine_tune(
  model: Model,
  arrays: dict[str, np.ndarray],
  recipe: Recipe,
  seed: int,
  teacher: Model | None = None,
) -> Model:
  """Trains all parameters of a network on every array once.

  With a teacher it is the training of `lv.dilute` without anything that leaves;
  without one the learning rate falls from block to block towards the input.
  """
  steps = len(arrays['label']) // recipe.batch_size
  rate = recipe.more_learning_rate if teacher else recipe.learning_rate
  schedule = optim.learning_rate_schedule(rate, steps, steps // 20, 0.0)
  settings = {
    'b1': 0.9,
    'b2': 0.999,
    'weight_decay': recipe.weight_decay,
    'clip_norm': 1.0,
    'layer_decay': 1.0 if teacher else recipe.layer_decay,
    'accumulate_steps': 1,
    'frozen': '',
  }
  distill = recipe.distill if teacher else 'none'
  job = Job(
    stage='evidence',
    phases=[Phase(model.module, steps)],
    optimizer=optim.make_optimizer(settings, schedule, model.depth),
    learning_rate=schedule,
    loss=LossSettings(distill=distill, distill_weight=recipe.distill_weight),
    dilution=Dilution(),
    seed=seed,
    steps_per_epoch=steps,
    make_batches=lambda first: in_memory.batches(
      arrays, recipe.batch_size, seed, first
    ),
    teacher=(teacher.module, teacher.params) if teacher else None,
    batch_size=recipe.batch_size,
    description={},
    log_every=steps,
    checkpoint_every=steps,
  )
  params = in_memory.run(
    job, model.params, sharding.make_mesh(), 'evidence', show('fine-tune')
  )
  return model.replace(params=params)


def show(what: str) -> Any:
  """Prints every fiftieth step and the time so far."""
  start = time.perf_counter()

  def line(done: int, total: int) -> None:
    if done % 50 == 0 or done in (1, 5, total):
      seconds = time.perf_counter() - start
      print(f'{what}: {done}/{total}, {seconds:.0f} s', flush=True)

  return line


class Table:
  """The rows of one seed and what they start from.

  Attributes:
    train: the training images.
    dense: the fine-tuned network.
    images: those that choose and fit, as the network takes them.
  """

  def __init__(self, options: argparse.Namespace, seed: int):
    self._options, self._seed = options, seed
    self._recipe = recipe_of(options)
    self._cache = options.cache
    backbone = lv.load_pretrained(
      options.weights, VARIANT, num_classes=0, image_size=options.image_size
    )
    train, test, classes = real_network.read_data(
      options.data, backbone, self._cache
    )
    # The folders are read class by class.
    order = np.random.default_rng(0).permutation(len(train.labels))
    self.train = train.take(order[: options.images])
    self._test = test.take(np.arange(len(test.labels))[: options.images])
    probed = real_network.with_probe(backbone, self.train, classes, self._cache)
    self.dense = self._fine_tuned(probed)
    # The images that choose and fit, another draw for each seed.
    self._chosen = np.random.default_rng(100 + seed).permutation(
      len(self.train.labels)
    )[:CALIBRATION]

  def _fine_tuned(self, probed: Model) -> Model:
    """`dense`, one for all seeds."""
    folder = self._cache / 'dense'
    if not (folder / 'model.json').exists():
      start = time.perf_counter()
      arrays = augmented(self.train, probed, self._recipe.epochs, 0)
      model = fine_tune(probed, arrays, self._recipe, 0)
      lv.export(model, folder, formats='orbax')
      seconds = time.perf_counter() - start
      self._write('probe', {'top1': self.score('probe', probed).top1})
      found = {'top1': self.score('dense', model).top1}
      self._write('dense', found | {'seconds': round(seconds)})
    return lv.load_export(folder)

  @functools.cached_property
  def images(self) -> np.ndarray:
    """The images that choose and fit, as they are."""
    return self.train.take(self._chosen).images(self.dense)

  @functools.cached_property
  def _arrays(self) -> dict[str, np.ndarray]:
    """The images of the further steps."""
    return augmented(
      self.train, self.dense, self._recipe.more_epochs, 1000 + self._seed
    )

  def _compressed(self, tokens: bool) -> lv.Compression:
    """A path to the largest speed-up; kept step by step."""
    name = 'compress_tokens' if tokens else 'compress'
    path = self._cache / f'{name}_{self._seed}.json'
    begun = None
    if path.exists():
      begun = lv.Compression.from_json(json.loads(path.read_text()))
    return lv.compress(
      self.dense,
      [self.images],
      target_speedup=max(SPEEDUPS.values()),
      parts=(*PARTS, 'tokens') if tokens else PARTS,
      resume=begun,
      on_step=lambda found: common.write(path, found.to_json()),
    )

  def layers(self, choice: str) -> tuple[int, ...]:
    return lv.nose(
      self.dense,
      [self.images],
      num_layers=NUM_LAYERS,
      resamples=0,
      warn=lambda line: None,
      **CHOICES[choice],
    ).removed

  def _stand_in(self, row: str) -> Model:
    """What the further steps lead to, nothing trained."""
    images = [self.images]
    row = row.removesuffix(_STREAMS).removesuffix(_DIRECT)
    if row.endswith(_TOKENS):
      return self._compressed(True).at(SPEEDUPS[row.removesuffix(_TOKENS)])
    if row in SPEEDUPS:
      smaller = self._compressed(False).at(SPEEDUPS[row])
      return lv.refit(smaller, self.dense, images)
    choice, how = row.split(' ')
    layers = self.layers(choice)
    if how == 'maps':
      return lv.linearize(self.dense, images, layers, inputs=INPUTS, refit=True)
    return lv.prune(self.dense, layers, mode=how)

  def _diluted(self, row: str, stand_in: Model) -> Model:
    recipe = self._recipe
    if row.endswith(_DIRECT):
      return fine_tune(stand_in, self._arrays, recipe, self._seed, self.dense)
    total = len(self._arrays['label']) // recipe.batch_size
    steps = max(1, round(SHARES.get(row.split(' ')[1], SHARE) * total))
    if row.endswith(_STREAMS):
      recipe = dataclasses.replace(recipe, distill='streams')
    return recipe.led(
      self.dense,
      stand_in,
      self._arrays,
      (steps, total - steps),
      teacher=self.dense,
      seed=self._seed,
      what=row,
    )

  def row(self, row: str) -> None:
    """Computes one row, unless it is there."""
    key = f'{self._seed} {row}'
    if key in common.read(self._options.output).get('rows', {}):
      return
    start = time.perf_counter()
    found: dict[str, Any] = {}
    if row == 'dense more':
      model = fine_tune(
        self.dense, self._arrays, self._recipe, self._seed, self.dense
      )
    else:
      stand_in = self._stand_in(row)
      found['before'] = self.score(f'{key} before', stand_in).top1
      print(row, 'before the further steps:', found['before'], flush=True)
      model = self._diluted(row, stand_in)
    score = self.score(key, model)
    dense = self._cache / f'{self._seed} dense more.npy'
    found |= {
      'top1': score.top1,
      'change': score.minus(dataclasses.replace(score, correct=np.load(dense))),
      'speedup': self.dense.macs(executed=True) / model.macs(executed=True),
      'parameters': model.num_parameters,
      'removed': model.removed_layers,
      'attention_modes': model.attention_modes,
      'mlp_dims': model.mlp_dims,
      'kept_blocks': model.block_origins,
      'seconds': round(time.perf_counter() - start),
    }
    self._write(key, found)

  def score(self, key: str, model: Model) -> lv.Evaluation:
    """Of all test images; which are right is kept."""
    images = self._test.images(model)
    found = lv.evaluate(model, [{'image': images, 'label': self._test.labels}])
    np.save(self._cache / f'{key}.npy', found.correct)
    return found

  def _write(self, key: str, row: dict[str, Any]) -> None:
    output = self._options.output
    found = common.read(output)
    found |= common.provenance() | {
      'recipe': dataclasses.asdict(self._recipe),
      'image_size': self._options.image_size,
      'train_images': len(self.train.labels),
      'test_images': len(self._test.labels),
      'calibration_images': CALIBRATION,
    }
    found.setdefault('rows', {})[key] = row
    common.write(output, found)
    print(key, row, flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--weights', required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--cache', required=True, type=pathlib.Path)
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  parser.add_argument('--rows', nargs='*', choices=ROWS, default=ROWS)
  parser.add_argument('--seeds', nargs='+', type=int, default=[0])
  parser.add_argument('--epochs', type=int, default=2)
  parser.add_argument('--more-epochs', type=int, default=3)
  parser.add_argument('--image-size', type=int, default=IMAGE_SIZE)
  parser.add_argument(
    '--learning-rate',
    type=float,
    default=Recipe.more_learning_rate,
    help='of the further steps',
  )
  parser.add_argument('--images', type=int, help='of each split, for a trial')
  options = parser.parse_args()
  for seed in options.seeds:
    table = Table(options, seed)
    for row in options.rows:
      table.row(row)


if __name__ == '__main__':
  main()
