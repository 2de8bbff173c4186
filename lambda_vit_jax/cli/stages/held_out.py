"""Held-out images for analysis, selection and least-squares fits."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from lambda_vit_jax.cli import task
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.training_free.cross_validation import FOLDS


def check(run: Run, limit: int | None, least: int = 1) -> None:
  """Checks that there are held-out images for a stage.

  Raises:
    UsageError: fewer than `least`.
  """
  if len(run.holdout_indices(limit)) < least:
    raise UsageError(
      f'config.data.holdout_images={run.settings.data.holdout_images}: '
      'selection and analysis read the held-out slice of the training images; '
      'keep at least 128'
    )


def held_out_batches(
  run: Run, model: Model, limit: int | None
) -> Iterator[dict[str, np.ndarray]]:
  """Returns the held-out images and labels, as masked batches."""
  check(run, limit)
  return run.holdout_batches(model.preprocessing, limit)


def selection_batches(
  run: Run, model: Model, limit: int | None
) -> Iterator[dict[str, np.ndarray]]:
  """Returns the same batches as a search reads them."""
  batches = held_out_batches(run, model, limit)
  return (task.for_search(run.settings, batch) for batch in batches)


def with_mirrored(
  batches: Iterable[Mapping[str, Array]],
) -> Iterator[dict[str, Array]]:
  """The images, and then with left and right exchanged, without labels.

  Every copy is in the fold of its original, so that no fit is tried on images
  whose copies it has seen; up to three have no copy for that.
  """
  parts = [
    np.asarray(batch['image'])[np.asarray(batch['mask'], bool)]
    if 'mask' in batch
    else np.asarray(batch['image'])
    for batch in batches
  ]
  images = np.concatenate(parts)
  yield {'image': images}
  yield {'image': images[len(images) % FOLDS :, :, ::-1]}
