"""Compare runtimes: dense, pruned and exported in each that is installed."""

import functools
import importlib.metadata
import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.evaluation.programs import (
  Candidate,
  Samples,
  compare_programs,
)
from lambda_vit_jax.evaluation.timing import Limits
from lambda_vit_jax.exporters import export, runtimes
from lambda_vit_jax.exporters.calibration import STATIC
from lambda_vit_jax.exporters.source import plain
from lambda_vit_jax.models import adapt
from lambda_vit_jax.models.edits import dequantize
from lambda_vit_jax.models.model import Model, create_model
from lambda_vit_jax.runtime.progress import Reporter


def compare_runtimes(
  names: Iterable[str],
  models: Mapping[str, Model],
  exported: epath.Path,
  samples: Samples,
  limits: Limits,
  reporter: Reporter,
) -> dict[str, Any]:
  """Measures every runtime that is installed; says which are not.

  Args:
    names: of `exporters.runtimes.RUNTIMES`.
    models: `dense` and `pruned`. Both are exported for each runtime in the
      same way.
    exported: the folder of an export of `pruned`, whose own files are
      measured too, where a runtime opens one.
    samples: what the programs are run on.
    limits: how long to measure each runtime.
    reporter: shows progress, and a line for every runtime that is left out.

  Returns:
    `runtimes`: by runtime, dtype and model what `compare_programs` measures;
    `threads`, the cores that each runtime has; and `versions` of the packages.
  """
  found: dict[str, Any] = {}
  versions: dict[str, str] = {}
  for name in names:
    line = runtimes.missing(name)
    if line:
      reporter.warn(f'benchmark: left out: {line}')
      continue
    try:
      found[name] = _measure(name, models, exported, samples, limits, reporter)
    except LambdaVitError as error:
      reporter.warn(f'benchmark: {name} left out: {error}')
      # Not to be tried again with every `run`.
      found[name] = {}
      continue
    for package in runtimes.RUNTIMES[name].packages:
      versions[package] = importlib.metadata.version(package)
  return {
    'runtimes': found,
    'threads': runtimes.available_cores(),
    'versions': versions,
  }


def _measure(
  name: str,
  models: Mapping[str, Model],
  exported: epath.Path,
  samples: Samples,
  limits: Limits,
  reporter: Reporter,
) -> dict[str, Any]:
  """By dtype and model, the row of one runtime."""
  runtime = runtimes.RUNTIMES[name]
  with tempfile.TemporaryDirectory() as scratch:
    candidates = []
    for dtype, model_name in itertools.product(runtime.dtypes(), models):
      kind = 'int8' if dtype == 'int8' and runtime.calibrated else 'float32'
      folder = epath.Path(scratch) / f'{model_name}_{kind}'
      if not folder.exists():
        export.export(
          dequantize(models[model_name]),
          folder,
          formats=(runtime.format,),
          dtype=kind,
          check_images=samples.calibration,
          # What eight bits cost is in the table.
          int8_arithmetic=f'{STATIC}:1' if kind == 'int8' else 'weights',
        )
      candidates.append(_candidate(name, model_name, folder, dtype))
    if runtimes.file_of(name, exported) is not None:
      dtype = runtimes.stored_dtype(name, exported)
      if dtype in runtime.dtypes():
        candidates.append(_candidate(name, 'exported', exported, dtype))
    return compare_programs(
      candidates, samples, limits, reporter, f'benchmark of {name}'
    )


def _candidate(
  name: str, model_name: str, folder: epath.Path, dtype: str
) -> Candidate:
  return Candidate(
    model_name,
    dtype,
    functools.partial(runtimes.open_export, name, folder, dtype),
  )


def dense_like(pruned: Model) -> Model:
  """The variant of a pruned model with all its layers, and random weights."""
  module = pruned.module
  dense = create_model(
    pruned.variant,
    num_classes=pruned.num_classes,
    image_size=module.image_size,
    in_chans=module.in_chans,
  )
  if module.segmentation is None:
    return dense
  return adapt.with_decoder(dense, module.segmentation, pruned.num_classes)


def make_samples(
  models: Mapping[str, Model],
  images: np.ndarray,
  calibration: np.ndarray,
  batches: Sequence[dict[str, np.ndarray]] = (),
) -> Samples:
  """The images of a comparison, with the logits of the models on them.

  Args:
    models: `dense` and `pruned`.
    images: `[batch, height, width, channels]` float32, normalised.
    calibration: more images, on which int8 files are calibrated.
    batches: labelled images for the accuracy, if any.
  """
  with jax.default_matmul_precision('highest'):
    logits = {
      name: np.asarray(plain(dequantize(model))(images))
      for name, model in models.items()
    }
  logits['exported'] = logits['pruned']
  return Samples(images, logits, calibration, batches)
