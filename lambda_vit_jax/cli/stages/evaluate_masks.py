"""Evaluate segmentation models: scores and sample pictures."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.cli import stage_table, task
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.data import decode, masks
from lambda_vit_jax.data.decode import UndecodableError
from lambda_vit_jax.evaluation import (
  changes,
  confusion,
  counts,
  sliding_windows,
)
from lambda_vit_jax.evaluation.accuracy import counts_everywhere
from lambda_vit_jax.evaluation.sliding_windows import Canvas, Predict, Windowing
from lambda_vit_jax.models.build import apply_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation, processes, sharding

# Images that are decoded at a time, ahead of the network.
_AT_ONCE = 16
_PICTURE_SIDE = 256
_GAP = 4


def holdout_scores(
  module: ViT,
  params: Params,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  dilution_factor: Array | None,
) -> dict[str, float]:
  """`loss`, `accuracy` (of pixels) and `mean_iou` of images in one window.

  Args:
    module: the network.
    params: on the mesh already, in any sharding.
    batches: `image`, `label` per pixel, and `mask`; this process's part.
    mesh: the batch is split over it.
    dilution_factor: `[depth]`, for blocks in mode `diluted`.
  """
  everywhere = sharding.replicated(mesh)
  found = confusion.summarize(
    counts_everywhere(
      counts.pixel_counts,
      module,
      params,
      sharding.put_batch(batch, mesh),
      dilution_factor,
      everywhere,
    )
    for batch in batches
  )
  return {name: found[name] for name in ('loss', 'accuracy', 'mean_iou')}


@compilation.jit(static_argnames='module')
def _forward(module: ViT, params: Params, images: Array) -> Array:
  return apply_module(module, params, images, capture=False)[0]


def predictor(model: Model, mesh: Mesh) -> Predict:
  """Returns a function from this process's windows to their logits."""
  params = sharding.replicate(model.params, mesh)

  def predict(images: np.ndarray) -> np.ndarray:
    batch = sharding.put_batch({'image': images}, mesh)
    logits = _forward(model.module, params, batch['image'])
    shards = {
      shard.index[0].start or 0: shard.data
      for shard in logits.addressable_shards
    }
    return np.concatenate([np.asarray(shards[k]) for k in sorted(shards)])

  return predict


def _canvases(
  run: Run, model: Model, indices: np.ndarray, windowing: Windowing
) -> Iterator[Canvas]:
  """Test images of this process, decoded ahead in threads."""
  rules = task.mask_rules(run.settings.segment, run.dataset.num_classes)
  skip = run.settings.data.skip_undecodable

  def make(index: int) -> Canvas | None:
    try:
      return sliding_windows.make_canvas(
        run.dataset.test, index, model.preprocessing, rules, windowing
      )
    except UndecodableError as error:
      if not skip:
        raise
      run.reporter.warn(str(error))
      return None

  with futures.ThreadPoolExecutor() as pool:
    for start in range(0, len(indices), _AT_ONCE):
      found = pool.map(make, indices[start : start + _AT_ONCE].tolist())
      yield from (canvas for canvas in found if canvas is not None)


def evaluate(
  run: Run,
  models: Mapping[str, Model],
  exported: Callable[[Any], Any],
  advance: Callable[[int], None],
) -> dict[str, Any]:
  """Scores every test image, and writes the pictures of the report.

  Args:
    run: its settings define how images become windows.
    models: `dense`, `pruned` and others.
    exported: a program that takes a batch of windows.
    advance: called with the number of images done.

  Returns:
    For each of the models, and for `exported`, see `sliding_windows.evaluate`;
    for `pruned` also `difference`, per model of `changes.COMPARED` the
    `changes.iou_difference`, if two images or more have labelled pixels.
  """
  settings = run.settings.segment
  model = models['pruned']
  windowing = Windowing.of(
    settings.evaluation, settings.stride, model.preprocessing.image_size
  )
  count = jax.process_count()
  indices = np.arange(len(run.dataset.test))[jax.process_index() :: count]
  programs: dict[str, Predict] = {
    name: predictor(model, run.mesh) for name, model in models.items()
  }
  programs['exported'] = lambda images: np.asarray(exported(images))
  results, kept, areas = {}, {}, {}
  for name, predict in programs.items():
    seen: dict[int, np.ndarray] = {}
    parts: dict[int, np.ndarray] = {}

    def keep(
      index: int,
      labels: np.ndarray,
      matrix: np.ndarray,
      seen: dict[int, np.ndarray] = seen,
      parts: dict[int, np.ndarray] = parts,
    ) -> None:
      parts[index] = confusion.areas(matrix)
      if index < settings.pictures:
        seen[index] = labels

    results[name] = sliding_windows.evaluate(
      predict,
      _canvases(run, model, indices, windowing),
      model.preprocessing,
      run.dataset.num_classes,
      run.batch_size // count,
      lambda images: advance(images * count),
      keep,
    )
    kept[name] = seen
    if name in ('pruned', *changes.COMPARED):
      shape = (len(run.dataset.test), run.dataset.num_classes)
      areas[name] = _of_all_processes(parts, shape)
  results['pruned'] |= _differences(areas)
  _write_pictures(run, kept)
  return results


def _of_all_processes(
  parts: Mapping[int, np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
  """Gathers the areas of every image, which the processes have in parts.

  Args:
    parts: `[2, classes]` of `confusion.areas` by the index of an image, of this
      process. What is zero is not exchanged.
    shape: images and classes.

  Returns:
    `[images, 2, classes]`, zero where an image has no labelled pixel.
  """
  rows = [
    [index, k, *part[:, k].tolist()]
    for index, part in parts.items()
    for k in np.flatnonzero(part[1]).tolist()
  ]
  every = list(itertools.chain.from_iterable(processes.gather(rows)))
  images, classes, *pixels = np.array(every, np.int64).reshape(-1, 4).T
  found = np.zeros((shape[0], 2, shape[1]), np.int64)
  found[images, :, classes] = np.stack(pixels, axis=-1)
  return found


def _differences(areas: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """`difference` of `pruned`, over the images that all models have segmented."""
  labelled = np.all(
    [part[:, 1].any(axis=-1) for part in areas.values()], axis=0
  )
  if np.count_nonzero(labelled) < 2:
    return {}
  kept = {name: part[labelled] for name, part in areas.items()}
  pruned = kept.pop('pruned')
  return {
    'difference': {
      name: changes.iou_difference(pruned, other)
      for name, other in kept.items()
    }
  }


def _write_pictures(
  run: Run, kept: Mapping[str, Mapping[int, np.ndarray]]
) -> None:
  """Each process writes those of its own images."""
  from PIL import Image

  if not kept['dense']:
    return
  folder = run.path(stage_table.PICTURES)
  folder.mkdir(parents=True, exist_ok=True)
  rules = task.mask_rules(run.settings.segment, run.dataset.num_classes)
  for index, dense in kept['dense'].items():
    record = run.dataset.test[index]
    image = decode.load(decode.open_image(record['image']), 3)
    truth = rules.read(record['label'], image.size)
    parts = [np.asarray(image)]
    parts += [colours(x) for x in (truth, dense, kept['pruned'][index])]
    size = masks.scaled(image.size, _PICTURE_SIDE / max(image.size))
    strip = Image.new('RGB', (4 * size[0] + 3 * _GAP, size[1]), 'white')
    for place, part in enumerate(parts):
      # Areas of one colour stay so.
      how = Image.Resampling.NEAREST if place else Image.Resampling.BICUBIC
      strip.paste(
        Image.fromarray(part).resize(size, how), (place * (size[0] + _GAP), 0)
      )
    file = io.BytesIO()
    strip.save(file, 'PNG')
    (folder / f'{index:04d}.png').write_bytes(file.getvalue())


def colours(labels: np.ndarray) -> np.ndarray:
  """A colour per class, far from those of its neighbours; none is black.

  Args:
    labels: int `[height, width]`, negative where there is no class.

  Returns:
    uint8 `[height, width, 3]`.
  """
  classes = np.arange(int(labels.max(initial=0)) + 1)
  # Hues by the golden ratio, with a lightness that alternates.
  hue = 2 * np.pi * (classes * 0.6180339887498949 % 1)
  turns = hue[:, None] + 2 * np.pi / 3 * np.arange(3)
  light = np.where(classes % 2, 150, 105)[:, None]
  palette = np.clip(light + 95 * np.cos(turns), 0, 255).astype(np.uint8)
  return np.where(
    (labels < 0)[..., None], np.uint8(0), palette[np.maximum(labels, 0)]
  )
