"""Stage `export`: write the pruned model in the formats of the config."""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.stages.finished import pruned_model
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.exporters import export, formats, publish
from lambda_vit_jax.exporters.calibration import STATIC
from lambda_vit_jax.models.model import Model

# Images that files are compared on, and those of a calibration, which half of
# them calibrate.
_COMPARED = 8
_CALIBRATION = 512


def export_model(run: Run) -> None:
  """Writes `export/`; with `export.hub` also its card, and uploads it.

  An export that is there already is only published: the card quotes what
  `evaluate` and `benchmark` have found since.
  """
  if not run.leader:
    return
  folder, repository = run.path('export'), run.settings.export.hub
  if not run.path(stage_table.EXPORT).exists():
    _write(run, folder)
  if repository:
    model = load.load_export(folder)
    report = load.read_description(run.path(stage_table.EXPORT))
    publish.publish(model, folder, repository, report, run.workdir)


def is_finished(run: Run) -> bool:
  """Whether the export is there, and is not to be published."""
  exported = run.path(stage_table.EXPORT).exists()
  return exported and not run.settings.export.hub


def _write(run: Run, folder: epath.Path) -> None:
  """Writes every format, each checked against the model."""
  model = pruned_model(run)
  settings = run.settings.export
  calibrates = settings.dtype == 'int8' and settings.int8_arithmetic.startswith(
    STATIC
  )
  number = _CALIBRATION if calibrates else _COMPARED
  # Logits per pixel take more memory.
  number = number // 4 if run.settings.segments else number
  images: Any = held_out_images(run, model, number)
  if images is None and calibrates:
    raise UsageError(
      f'config.data.holdout_images={run.settings.data.holdout_images}: int8 '
      'files are calibrated on held-out images; keep at least 128, or take '
      'config.export.int8_arithmetic=weights'
    )
  if images is None:
    # Programs are only compared on these.
    images = next(run.eval_batches(model.preprocessing))['image'][:number]
  elif run.settings.segments:
    # Accuracy is then of the pixels' classes, the model's own.
    images = images[0]
  results = export.export(
    model,
    folder,
    check_images=images,
    **run.settings.export.options,
  )
  for line in results.get('warnings', ()):
    run.reporter.warn(line)


def held_out_images(
  run: Run, model: Model, number: int
) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns held-out images and their labels; None if nothing is held out."""
  if not len(run.holdout_indices(number)):
    return None
  batches = list(run.holdout_batches(model.preprocessing, number, alone=True))
  images, labels = (
    np.concatenate([batch[name][batch['mask']] for batch in batches])
    for name in ('image', 'label')
  )
  return images, labels


def exported_predict(run: Run) -> Model | Callable[[Any], Any]:
  """Loads `export/model.stablehlo`, else the model in `export/`."""
  program = run.path('export') / 'model.stablehlo'
  if program.exists():
    load.check_exported(run.path('export'), 'model.stablehlo')
    return formats.read_stablehlo(program)
  return load.load_export(run.path('export'))
