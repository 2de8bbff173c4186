"""Export a model: write every format, and check each against the model.

All files are written into a temporary folder, read back and compared; only
then is the folder renamed. A failed or killed export leaves the one before it
as it was.
"""

import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from lambda_vit_jax import __version__
from lambda_vit_jax.checkpoints.description import SCHEMA, STAGES, describe
from lambda_vit_jax.core import digests
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import (
  CheckpointError,
  DataError,
  ModelError,
  UsageError,
  nearest,
)
from lambda_vit_jax.core.files import check_json, user_path, write_json
from lambda_vit_jax.core.tables import Shown, Table
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.exporters import extras, replaced_folder
from lambda_vit_jax.exporters.calibration import (
  STATIC,
  accepted_loss,
  accuracy,
  check_loss,
  make_calibration,
)
from lambda_vit_jax.exporters.comparison import (
  Program,
  checked_images,
  compare_with,
)
from lambda_vit_jax.exporters.formats import ALWAYS, FORMATS
from lambda_vit_jax.exporters.source import (
  ARITHMETICS,
  DTYPES,
  Source,
  make_source,
)
from lambda_vit_jax.models.model import Model

# Of `model.json`, beside what describes the network.
_ENTRIES = (
  'format_version',
  'num_parameters',
  'macs',
  'macs_executed',
  'formats',
  'versions',
  'differences',
  'bytes',
  'accuracy',
  'warnings',
)

_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'orbax-checkpoint',
  'numpy',
  'safetensors',
)


# By file or folder; of two files of a format, the one that is opened.
_FORMAT_OF = {
  'params': 'orbax',
  'model.safetensors': 'safetensors',
  'model.stablehlo': 'stablehlo',
  'model.onnx': 'onnx',
  'model.xml': 'openvino',
  'transformers': 'transformers',
}


class ExportReport(Shown, dict[str, Any]):
  """What `export` has written and measured: a dict that shows as a table."""

  def table(self) -> Table:
    """One row per file, with the largest difference of its logits."""
    differences = self['differences']
    rows = []
    for name, size in self['bytes'].items():
      measured = differences.get(_FORMAT_OF.get(name))
      text = '' if measured is None else f'{measured:.1e}'
      rows.append((name, f'{size:,}', text))
    return Table(
      'Export',
      ('file', 'bytes', 'difference of logits'),
      rows,
      caption='; '.join(self['warnings']),
    )


@check_arguments
def export(
  model: Model,
  directory: str | epath.PathLike,
  formats: str | Iterable[str] = ('orbax', 'safetensors', 'stablehlo'),
  dtype: str = 'float32',
  zero_fill: bool = False,
  check_images: Array | tuple[Array, Array] | None = None,
  extra: Mapping[str, Any] | None = None,
  int8_arithmetic: str = 'weights',
) -> ExportReport:
  """Writes `params/`, `model.json` and the portable formats.

  docs/files_export.md#an-export describes the folder.

  Args:
    model: dense or pruned, unfolded as trained; folded here where a format
      needs it.
    directory: a new or empty folder, or an older export, which is replaced.
    formats: of `orbax`, `safetensors`, `stablehlo`, `onnx`, `openvino` and
      `transformers`.
      `orbax` is what we load ourselves, and always written.
    dtype: storage of the portable formats: `float32`, `bfloat16`, `float16`.
      `params/` keeps the model's own. With `int8` the export, `params/`
      included, is of `models.edits.quantize(model, int8_arithmetic)`.
    zero_fill: write zeros in place of removed attention layers, MLPs and
      neurons, so that stock timm loads `model.safetensors` with `strict=True`.
    check_images: NHWC images for the comparisons, as a call of the model takes
      them; noise if None. With `static` arithmetic the even ones calibrate,
      and the accuracy is measured on the odd ones; (images, labels) to measure
      it against labels instead of the model's own classes.
    extra: more entries for `model.json`, JSON values under names of your own.
    int8_arithmetic: `weights` or `dynamic`, see `models.edits.quantize`; or
      `static`, for `onnx` and `openvino`, where activations are quantised with
      scales that were found on images, and `params/` stays in float32.
      `static:0.02` accepts a loss of 0.02 of top-1, and not 0.005.

  Returns:
    A dict of `differences` (per format from the exported model's logits;
    `stock_epsilon`: of the folded model with one epsilon for all norms;
    `quantization`: of the quantised model from the one in float32;
    `openvino_bfloat16`: of OpenVINO's own bfloat16, on processors that have it),
    `bytes`
    per file, `accuracy` per calibrated format (see `calibration.accuracy`), and
    `warnings`, lines to show.

  Raises:
    UsageError: an unknown format or dtype, options that exclude each other, or
      `extra` that is no JSON or has a name that `model.json` has.
    DataError: `check_images` that are no input of the model, or their labels no
      classes of it.
    ModelError: a model that cannot be exported like that.
    CheckpointError: a written file does not reproduce the model's logits, or
      has lost more accuracy than is accepted.
    LambdaVitError: the folder is not an export or cannot be written.
  """
  names = check_settings(formats, dtype, zero_fill, int8_arithmetic)
  _check_model(model, dtype)
  _check_extra(extra or {})
  labels = None
  if isinstance(check_images, tuple):
    if len(check_images) != 2:
      raise DataError(
        f'check_images is a tuple of {len(check_images)}; give images, or '
        '(images, labels)'
      )
    check_images, labels = check_images
  with replaced_folder.replaced(user_path(directory)) as folder:
    calibration = None
    if dtype == 'int8' and int8_arithmetic.startswith(STATIC):
      calibration = make_calibration(
        model,
        None if check_images is None else checked_images(model, check_images),
        None if labels is None else np.asarray(labels),
        int8_arithmetic,
      )
    source = make_source(model, dtype, zero_fill, int8_arithmetic, calibration)
    compare = compare_with(source.model, check_images)
    report = _write_formats(folder, source, names, compare)
    _write_model_json(folder, source, names, report | dict(extra or {}))
  return report


def _check_extra(extra: Mapping[str, Any]) -> None:
  """Refuses entries that would take the place of what an export says itself."""
  own = {*SCHEMA.needed, *SCHEMA.optional, *_ENTRIES} - {*STAGES.optional}
  taken = sorted(own & {*map(str, extra)})
  if taken:
    raise UsageError(
      f'export: extra has `{taken[0]}`, which model.json has of its own; choose '
      'another name'
    )
  for name, value in extra.items():
    try:
      json.dumps({name: value}, allow_nan=False)
    except (TypeError, ValueError) as error:
      raise UsageError(
        f'export: extra[{name!r}] is no JSON value ({error}); give numbers, '
        'text, lists or dicts'
      ) from error
  check_json(dict(extra), 'export: extra', STAGES, 'leave it out')


def check_settings(
  formats: str | Iterable[str],
  dtype: str,
  zero_fill: bool,
  int8_arithmetic: str,
) -> tuple[str, ...]:
  """Checks options against each other; see `export`.

  Returns:
    The names of the formats to write, in order.

  Raises:
    UsageError: an unknown format or dtype, or options that exclude each other.
  """
  chosen = (formats,) if isinstance(formats, str) else tuple(formats)
  for name in chosen:
    if name not in FORMATS:
      raise UsageError(
        f'export.formats: unknown format {name!r}{nearest(name, FORMATS)}; '
        f'known are {", ".join(FORMATS)}'
      )
  if dtype not in DTYPES:
    raise UsageError(f'export.dtype={dtype!r}; known are {", ".join(DTYPES)}')
  arithmetic = int8_arithmetic.partition(':')[0]
  if arithmetic not in ARITHMETICS:
    raise UsageError(
      f'export.int8_arithmetic={int8_arithmetic!r}; known are '
      f'{", ".join(ARITHMETICS)}'
    )
  if arithmetic == STATIC:
    accepted_loss(int8_arithmetic)
  elif arithmetic != int8_arithmetic:
    raise UsageError(
      f'export.int8_arithmetic={int8_arithmetic!r}: a loss of accuracy is only '
      f'measured with static; give {arithmetic}, or static:0.01'
    )
  if arithmetic != 'weights' and dtype != 'int8':
    raise UsageError(
      f'export.int8_arithmetic={int8_arithmetic} is of int8, and export.dtype='
      f'{dtype} is not; give dtype=int8, or leave int8_arithmetic out'
    )
  if dtype == 'int8' and zero_fill:
    raise UsageError(
      'export.zero_fill is for stock timm, which reads no int8; leave one of '
      'the two out'
    )
  for name in chosen:
    supported = FORMATS[name].int8_arithmetic
    if dtype == 'int8' and arithmetic not in supported:
      take = f'take {" or ".join(supported)}, or ' if supported else ''
      raise UsageError(
        f'format {name}: does not support int8_arithmetic={arithmetic}; '
        f'{take}leave `{name}` out of the formats'
      )
  return tuple(name for name in FORMATS if name in (ALWAYS, *chosen))


def check_packages(names: Iterable[str]) -> None:
  """Refuses formats whose packages are not installed.

  Raises:
    LambdaVitError: says what to install.
  """
  for name in names:
    for package in FORMATS[name].packages:
      remedy = extras.leave_out(name)
      extras.check_installed(package, f'format {name}', remedy)


def _check_model(model: Model, dtype: str) -> None:
  """Refuses models that are not meant to be exported, or not in this dtype."""
  for index, mode in enumerate(model.attention_modes):
    if mode in ('diluted', 'skip'):
      raise ModelError(
        f'block {index} is in mode {mode!r}, which is for training and '
        'selection; prune the model before exporting it'
      )
  if dtype != 'int8' and model.module.quantization != 'none':
    raise ModelError(
      f'the model is quantised, which export.dtype={dtype} is not; take int8,'
      ' or dequantize(model) first'
    )


def _write_formats(
  folder: epath.Path,
  source: Source,
  names: tuple[str, ...],
  compare: Callable[[Program], float],
) -> ExportReport:
  """Writes every format and compares what is read back."""
  differences: dict[str, float] = {}
  accuracies: dict[str, Any] = {}
  warnings: list[str] = []
  for name in names:
    entry = FORMATS[name]
    entry.write(folder, source)
    programs = {name: entry.read(folder)} | entry.others(folder, source)
    differences |= {other: compare(programs[other]) for other in programs}
    warnings += entry.warnings(source, differences)
    judged = source.calibration
    if judged is not None and name != ALWAYS:
      accuracies[name] = accuracy(source.model, programs[name], judged)
      check_loss(name, accuracies[name], judged.accepted_loss)
  if source.kept_float32:
    warnings.append(
      f'float16 cannot hold {", ".join(source.kept_float32)}: kept in float32'
    )
  _check_differences(differences, source)
  sizes = {
    path.name: _bytes(path)
    for path in sorted(folder.iterdir())
    if path.name != 'model.json'
  }
  report = ExportReport(differences=differences, bytes=sizes, warnings=warnings)
  return ExportReport(report | {'accuracy': accuracies}) if judged else report


def _check_differences(
  differences: Mapping[str, float], source: Source
) -> None:
  """Refuses files that do not compute the model.

  Formats in half precision, and comparisons that are no format, only have to
  be finite.
  """
  for name, value in differences.items():
    entry = FORMATS.get(name)
    bound = math.inf if entry is None else entry.tolerance(source)
    if source.model.module.quantization == 'dynamic':
      # Another program may round a value halfway between two integers the other
      # way; that changes the logits by less than quantisation itself did.
      bound = max(bound, differences['quantization'])
    if entry is not None and entry.one_epsilon:
      bound += differences['stock_epsilon']
    if not math.isfinite(value) or value > bound:
      raise CheckpointError(
        f'export: logits of {name} differ from the model by {value:.1e} '
        f'(allowed {bound:.0e}); nothing was changed, leave that format '
        'out and report this'
      )


def _write_model_json(
  folder: epath.Path,
  source: Source,
  names: tuple[str, ...],
  entries: dict[str, Any],
) -> None:
  """Writes the final `model.json`, with the digests of all other files."""
  path = folder / 'model.json'
  # The first form, which the `orbax` writer left, is not among the digests.
  path.unlink()
  folded = source.folded
  fields = describe(source.model) | {
    'format_version': 1,
    'folded': {
      'attention_modes': list(folded.attention_modes),
      'norm_eps': list(folded.module.norm_eps),
      'dtype': source.dtype,
      'kept_float32': source.kept_float32,
      'zero_filled': source.zero_fill,
    },
    'num_parameters': source.unquantized.num_parameters,
    'macs': source.model.macs(),
    'macs_executed': source.model.macs(executed=True),
    'formats': list(names),
    'versions': {
      'lambda_vit_jax': __version__,
      'python': platform.python_version(),
      **{name: importlib.metadata.version(name) for name in _PACKAGES},
    },
  }
  files = {'files': digests.of_folder(folder)}
  write_json(path, digests.seal(fields | entries | files))


def _bytes(path: epath.Path) -> int:
  """Size of a file, or of all files of a folder."""
  if path.is_dir():
    return sum(map(_bytes, path.iterdir()))
  return path.stat().length
