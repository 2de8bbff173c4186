"""Train maps and MLPs for some hundred steps towards the dense network.

Between the closed forms and training: the maps of `linearize` and the MLPs that
follow the first change are moved by Adam, on random views of the same unlabelled
images, towards the dense network's normed streams and logits
(`losses.stream_distillation_loss`; docs/training_free.md#polish). Nothing else
changes, and inference costs the same.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import Batches, gathered, read_images
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import ModelError, UsageError
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.training import in_memory, optim
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Job, Phase
from lambda_vit_jax.training.step import LossSettings
from lambda_vit_jax.training_free import paired, views

LEARNING_RATE = 3e-5
BATCH_SIZE = 32
CROP_AREA = 0.5
_WARMUP = 0.05
"""Share of the steps."""


@dataclasses.dataclass(frozen=True)
class PolishOptions:
  """How long `polish` trains and on what; see there, whose keywords these are."""

  steps: int = 300
  learning_rate: float = LEARNING_RATE
  batch_size: int = BATCH_SIZE
  crop_area: float = CROP_AREA
  seed: int = 0

  def __post_init__(self):
    if self.steps < 1:
      raise UsageError(f'steps={self.steps}: polish takes at least one step')
    if not self.learning_rate > 0:
      raise UsageError(
        f'polish: learning_rate={self.learning_rate:g}: give a number above 0'
      )
    if not 0.0 < self.crop_area <= 1.0:
      raise UsageError(
        f'polish: crop_area={self.crop_area:g}: give a share of the image above '
        '0, or 1 for whole images'
      )


@check_arguments
def polish(
  model: Model,
  dense: Model,
  batches: Batches,
  *,
  steps: int = 300,
  learning_rate: float = LEARNING_RATE,
  batch_size: int = BATCH_SIZE,
  crop_area: float = CROP_AREA,
  seed: int = 0,
  mesh: Mesh | None = None,
  on_progress: Callable[[int, int], None] | None = None,
) -> Model:
  """`model` with maps and MLPs trained towards the dense network.

  Args:
    model: finished, with blocks `linear` or `absent` (`linearize`, `prune(dense,
      layers, 'absent')`) or with fewer of them (`drop_blocks`), not folded; not
      changed.
    dense: the model before attention layers were replaced or left out, or
      blocks dropped.
    batches: an iterable of normalised NHWC arrays, or what else
      `images.read_images` takes; labels are not used. 512 images are enough
      for most networks.
    steps: updates of Adam; 200 to 1000 are usual.
    learning_rate: its highest value, after a short warm-up and before a cosine
      to 0.
    batch_size: images per step.
    crop_area: least share of an image's area in a random crop of it; in every step
      crops are drawn anew, and half of them mirrored. With 1 the images are taken
      as they are.
    seed: of the order of the images, and of the crops.
    mesh: devices that share the images; see `images.read_images`.
    on_progress: is called with steps done and steps in all.

  Returns:
    `model` with other parameters in its maps and in the MLPs from the first
    change on; float32 arrays on the host.

  Raises:
    ModelError: models that differ in more than modes, blocks and widths, that do
      not differ, or whose changed blocks are `identity` (they double the stream);
      or a loss that is not finite.
    DataError: fewer than 32 images, or images of another shape.
    UsageError: no step, a batch size that the devices do not divide, or an
      impossible area.
  """
  options = PolishOptions(steps, learning_rate, batch_size, crop_area, seed)
  images = read_images(batches, model, mesh)
  devices = images.placement.mesh.devices.reshape(-1, 1)
  mesh = Mesh(devices, sharding.BATCH_AXES)
  paired.check_images(images, 'polish on')
  pixels = gathered(images)
  job = polish_job(model, dense, pixels, options, mesh)
  params = in_memory.run(job, model.params, mesh, 'polish', on_progress)
  return model.replace(params=params)


def polish_job(
  model: Model,
  dense: Model,
  pixels: np.ndarray,
  options: PolishOptions,
  mesh: Mesh,
) -> Job:
  """What `polish` does, for `training.loop.fit`.

  Args:
    model: what is trained.
    dense: the teacher.
    pixels: all images, of every process, `[n, height, width, channels]`.
    options: of the training; the batch is that of all processes.
    mesh: devices to train on.

  Raises:
    ModelError: see `polish`.
    UsageError: see `polish`.
  """
  pairing = paired.pair(model, dense)
  paired.check_not_doubled(model, pairing, 'polish')
  if min(pairing.first, pairing.first_short) == model.depth:
    raise ModelError('the two models are the same network: nothing to polish')
  sharding.check_batch_size(options.batch_size, mesh)
  schedule = optim.learning_rate_schedule(
    options.learning_rate, options.steps, int(_WARMUP * options.steps), 0.0
  )
  settings = {
    'b1': 0.9,
    'b2': 0.999,
    'weight_decay': 0.0,
    'clip_norm': 1.0,
    'layer_decay': 1.0,
    'accumulate_steps': 1,
    'frozen': frozen_pattern(model, pairing),
  }
  module = model.module.clone(drop_path_rates=(0.0,) * model.depth)
  pairs = tuple((j, target - 1) for j, target in enumerate(pairing.targets))
  return Job(
    stage='linearize',
    phases=(Phase(module, until=options.steps),),
    optimizer=optim.make_optimizer(settings, schedule, model.depth),
    learning_rate=schedule,
    loss=LossSettings(
      distill='streams', distill_weight=1.0, stream_pairs=pairs
    ),
    dilution=Dilution((), 0),
    seed=options.seed,
    steps_per_epoch=-(-len(pixels) // options.batch_size),
    make_batches=lambda first: _batches(pixels, options, first),
    teacher=(dense.module, dense.params),
    batch_size=options.batch_size,
    description={},
    log_every=options.steps,
    checkpoint_every=options.steps,
  )


def _batches(
  pixels: np.ndarray, options: PolishOptions, first: int
) -> Iterator[dict[str, np.ndarray]]:
  """This process's part of the batches from step `first` on, without end."""
  size, area, seed = options.batch_size, options.crop_area, options.seed
  plain = in_memory.batches({'image': pixels}, size, seed, first)
  if area == 1.0:
    yield from plain
  for step, batch in enumerate(plain, first):
    # Of all processes, so that their number does not matter.
    crops = views.draw(size, area, (seed, step))
    begin = jax.process_index() * len(batch['image'])
    crops = crops.rows(begin, begin + len(batch['image']))
    yield {'image': views.take(batch['image'], crops)}


def frozen_pattern(model: Model, pairing: paired.Pairing) -> str:
  """Matches paths of all parameters but the maps and the MLPs after a change."""
  first = min(pairing.first, pairing.first_short)
  trained = [
    f'{block_name(j)}/mlp/'
    for j in range(first, model.depth)
    if model.mlp_dims[j]
  ]
  trained += [
    f'{block_name(j)}/attn/'
    for j in pairing.changed
    if model.attention_modes[j] == 'linear'
  ]
  if not trained:
    raise ModelError(
      'no map, and no MLP after a change: there is nothing to polish'
    )
  return f'^(?!{"|".join(trained)})'
