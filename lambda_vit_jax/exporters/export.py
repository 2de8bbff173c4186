"""A model out: `export/` with every format checked against the model.

The folder is written beside its final place, every file is read back and its
logits compared, and only then does it take the name: a failed or killed
export leaves the one before as it was.
"""

import importlib.metadata
import math
import platform
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lambda_vit_jax import __version__
from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.checkpoints.load import load_export, load_pretrained
from lambda_vit_jax.core import digests
from lambda_vit_jax.core import files as files_lib
from lambda_vit_jax.core.errors import (
  CheckpointError,
  LambdaVitError,
  ModelError,
  UsageError,
  nearest,
)
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.exporters import formats as formats_lib
from lambda_vit_jax.models.edits import dequantize, fold, quantize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.quantization import QUANTIZATIONS

FORMATS = ('orbax', 'safetensors', 'stablehlo', 'onnx')
"""What `formats` may name; `orbax` (`params/`) is always written."""

# Differences are max |found - reference| / max(1, max |reference|). The two
# sides of a check are the same function in float32, in another order.
_TOLERANCE = 1e-4
_STOCK_WARNING = 1e-3

_NUM_CHECK_IMAGES = 4
_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'orbax-checkpoint',
  'numpy',
  'safetensors',
)


def export(
  model: Model,
  directory: str | epath.PathLike,
  formats: Iterable[str] = ('orbax', 'safetensors', 'stablehlo'),
  dtype: str = 'float32',
  zero_fill: bool = False,
  check_images: Array | None = None,
  extra: Mapping[str, Any] | None = None,
  int8_arithmetic: str = 'weights',
) -> dict[str, Any]:
  """Writes `params/`, `model.json` and the portable formats (METHOD, 7).

  Args:
    model: dense or pruned, unfolded as trained; folded here where a format
      needs it.
    directory: taken over if it is an older export, else made.
    formats: of `FORMATS`. `orbax` is what we load ourselves and always there.
    dtype: storage of the portable formats: `float32`, `bfloat16`, `float16`.
      `params/` keeps what the model has. With `int8` the export, `params/`
      included, is of `models.changes.quantize(model, int8_arithmetic)`.
    zero_fill: write zeroed projections in place of removed attentions, so
      that stock timm loads `model.safetensors` with `strict=True`.
    check_images: normalised NHWC images for the comparisons; noise if None.
    extra: more entries for `model.json`, JSON values.
    int8_arithmetic: `weights` or `dynamic`, see `models.changes.quantize`.

  Returns:
    `differences` (per format to the exported model; `stock_epsilon`: the
    folded model with one epsilon for all norms; `quantization`: the quantised
    model to the one in float32), `bytes` per file, and `warnings`, lines to
    show.

  Raises:
    UsageError: an unknown format or dtype, or what does not go together.
    ModelError: a model that cannot be exported like that.
    CheckpointError: a written file does not give the model's logits.
    LambdaVitError: the folder is not ours or cannot be written.
  """
  formats = check_settings(formats, dtype, zero_fill, int8_arithmetic)
  _check_modes(model)
  if dtype != formats_lib.INT8 and model.module.quantization != 'none':
    raise ModelError(
      f'the model is quantised, which export.dtype={dtype} is not; take int8,'
      ' or dequantize(model) first'
    )
  target = epath.Path(directory)
  _recover(target)
  _check_target(target)
  temporary = target.parent / f'.{target.name}.{uuid.uuid4().hex[:8]}.part'
  try:
    temporary.mkdir(parents=True)
    report = _write(
      quantize(model, int8_arithmetic) if dtype == formats_lib.INT8 else model,
      dequantize(model),
      temporary,
      formats,
      dtype,
      zero_fill,
      check_images,
      extra or {},
    )
    _install(temporary, target)
  except OSError as error:
    raise LambdaVitError(
      f'{target}: cannot write the export ({error.strerror or error}); choose '
      'another folder or free some space'
    ) from error
  finally:
    if temporary.exists():
      temporary.rmtree()
  return report


def check_settings(
  formats: Iterable[str], dtype: str, zero_fill: bool, int8_arithmetic: str
) -> tuple[str, ...]:
  """The formats in order, once all goes together; see `export`.

  Raises:
    UsageError: an unknown format or dtype, or what does not go together.
  """
  formats = tuple(formats)
  for name in formats:
    if name not in FORMATS:
      raise UsageError(
        f'export.formats: unknown format {name!r}{nearest(name, FORMATS)}; '
        f'known are {", ".join(FORMATS)}'
      )
  known = (*formats_lib.DTYPES, formats_lib.INT8)
  if dtype not in known:
    raise UsageError(f'export.dtype={dtype!r}; known are {", ".join(known)}')
  _check_int8(formats, dtype, zero_fill, int8_arithmetic)
  return tuple(name for name in FORMATS if name in formats)


def _check_int8(
  formats: tuple[str, ...],
  dtype: str,
  zero_fill: bool,
  arithmetic: str,
) -> None:
  """Refuses what an int8 export cannot be."""
  if arithmetic not in QUANTIZATIONS[1:]:
    raise UsageError(
      f'export.int8_arithmetic={arithmetic!r}; known are '
      f'{" and ".join(QUANTIZATIONS[1:])}'
    )
  if dtype != formats_lib.INT8:
    return
  if zero_fill:
    raise UsageError(
      'export.zero_fill is for stock timm, which reads no int8; leave one of '
      'the two out'
    )
  if 'onnx' in formats and arithmetic == 'dynamic':
    raise UsageError(
      'format onnx: has no form of int8_arithmetic=dynamic here; take weights, '
      'or leave `onnx` out of the formats'
    )


def _check_modes(model: Model) -> None:
  for index, mode in enumerate(model.attention_modes):
    if mode in ('diluted', 'skip'):
      raise ModelError(
        f'block {index} is in mode {mode!r}, which is for training and '
        'selection; prune the model before exporting it'
      )


def _check_target(target: epath.Path) -> None:
  """Refuses to take over anything but an export."""
  if not target.exists():
    return
  if not target.is_dir():
    raise LambdaVitError(f'{target}: is a file; choose a folder')
  if any(target.iterdir()) and not (target / 'model.json').exists():
    raise LambdaVitError(
      f'{target}: holds other files and no export; choose another folder'
    )


def _previous(target: epath.Path) -> epath.Path:
  return target.parent / f'.{target.name}.previous'


def _recover(target: epath.Path) -> None:
  """Undoes an exchange that was killed between its two renames."""
  if _previous(target).exists() and not target.exists():
    _previous(target).rename(target)


def _install(temporary: epath.Path, target: epath.Path) -> None:
  """Gives the finished folder its name, then drops the old one."""
  previous = _previous(target)
  if previous.exists():
    previous.rmtree()
  if target.exists():
    target.rename(previous)
  temporary.rename(target)
  if previous.exists():
    previous.rmtree()


def _write(
  model: Model,
  exact: Model,
  directory: epath.Path,
  formats: tuple[str, ...],
  dtype: str,
  zero_fill: bool,
  check_images: Array | None,
  extra: Mapping[str, Any],
) -> dict[str, Any]:
  """Everything into `directory`; `exact` is the model not quantised."""
  model = _plain(model)
  folded = fold(model)
  stored, kept = formats_lib.stored_model(folded, dtype)
  images = _check_images(model, check_images)
  with formats_lib.exact_products():
    logits = np.asarray(model(images))
  if not np.isfinite(logits).all():
    raise ModelError(
      'the model gives NaN or infinite logits; it is not worth exporting'
    )

  # Rounding can turn a near tie between two matches, and then an image's
  # logits differ by more; not those of every other image.
  merges = any(model.module.merge_counts)

  def check(found: Callable[[Array], Array]) -> float:
    with formats_lib.exact_products():
      return formats_lib.difference(logits, found(images), typical=merges)

  fields = describe(model) | {'format_version': 1}
  _save_params(directory / 'params', model.params)
  # A first form of the file, enough to read the folder back.
  files_lib.write_json(directory / 'model.json', fields)
  differences = {'orbax': check(_plain(load_export(directory)))}
  warnings = []
  quantized = model.module.quantization != 'none'
  if quantized:
    differences['quantization'] = check(_plain(exact))
  if 'safetensors' in formats:
    path = directory / 'model.safetensors'
    formats_lib.write_safetensors(directory, stored, zero_fill)
    differences['safetensors'] = check(_plain(load_pretrained(path)))
    differences['stock_epsilon'] = check(_with_stock_epsilon(folded, model))
    if differences['stock_epsilon'] > _STOCK_WARNING:
      warnings.append(
        'model.safetensors: a program with one epsilon for all norms gives '
        f'logits that differ by {differences["stock_epsilon"]:.1e}; set each '
        "norm's epsilon from config.json"
      )
    if merges:
      warnings.append(
        'model.safetensors: programs that know timm alone compute the network '
        'without its token merging; use model.stablehlo, model.onnx or this '
        'package'
      )
    if quantized:
      warnings.append(
        'model.safetensors: matrices are int8; other programs have to load '
        'weight * weight_scale in place of each weight'
      )
  if 'stablehlo' in formats:
    path = directory / 'model.stablehlo'
    formats_lib.write_stablehlo(path, stored)
    differences['stablehlo'] = check(formats_lib.read_stablehlo(path))
  if 'onnx' in formats:
    path = directory / 'model.onnx'
    formats_lib.write_onnx(path, stored, dtype)
    differences['onnx'] = check(formats_lib.read_onnx(path))
  if kept:
    warnings.append(f'float16 cannot hold {", ".join(kept)}: kept in float32')
  _check_differences(differences, dtype, model.module.quantization)
  report = {
    'differences': differences,
    'bytes': _sizes(directory),
    'warnings': warnings,
  }
  (directory / 'model.json').unlink()
  files = digests.of_folder(directory)
  files_lib.write_json(
    directory / 'model.json',
    digests.seal(
      fields
      | {
        'folded': {
          'attention_modes': list(folded.attention_modes),
          'norm_eps': list(folded.module.norm_eps),
          'dtype': dtype,
          'kept_float32': kept,
          'zero_filled': zero_fill,
        },
        'num_parameters': exact.num_parameters,
        'macs': model.macs(),
        'formats': ['orbax', *(name for name in formats if name != 'orbax')],
        'versions': _versions(),
      }
      | report
      | dict(extra)
      | {'files': files}
    ),
  )
  return report


def _plain(model: Model) -> Model:
  """`model` without options that only training and speed know.

  What is read back is then the same program, compiled once.
  """
  module = model.module.clone(
    dtype=jnp.float32,
    attention_kernel='explicit',
    remat=False,
    drop_path_rates=(0.0,) * model.depth,
  )
  return model.replace(module=module)


def _check_images(model: Model, images: Array | None) -> Array:
  """Images to compare logits on: those given, else noise from a fixed seed."""
  module = model.module
  shape = (*module.image_size, module.in_chans)
  if images is None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(_NUM_CHECK_IMAGES, *shape))
  images = np.asarray(images, np.float32)
  if images.shape[1:] != shape or not len(images):
    raise ModelError(
      f'check_images: shape {images.shape}, the model takes (batch, '
      f'{", ".join(map(str, shape))})'
    )
  return images


def _save_params(path: epath.Path, params: Any) -> None:
  path = files_lib.absolute(path)
  with orbax_store.orbax().StandardCheckpointer(
    multiprocessing_options=orbax_store.alone()
  ) as checkpointer:
    # Orbax takes no arrays of one process from a job of several.
    checkpointer.save(path, jax.tree.map(np.asarray, params))


def _with_stock_epsilon(folded: Model, model: Model) -> Model:
  """What a program computes that knows one epsilon: the unfolded first."""
  eps = model.module.norm_eps[-1]
  module = folded.module.clone(norm_eps=(eps,) * (folded.depth + 1))
  return folded.replace(module=module)


def _check_differences(
  differences: Mapping[str, float], dtype: str, quantization: str
) -> None:
  """Refuses files that do not compute the model.

  Raises:
    CheckpointError: names the format. Half precision is only recorded.
  """
  allowed = _TOLERANCE
  if quantization == 'dynamic':
    # A token's number that lies between two integers may be rounded the other
    # way by another program; by less than rounding itself changed.
    allowed = max(allowed, differences['quantization'])
  for name, value in differences.items():
    exact = name == 'orbax' or (
      dtype in ('float32', formats_lib.INT8)
      and name not in ('stock_epsilon', 'quantization')
    )
    if not math.isfinite(value) or (exact and value > allowed):
      raise CheckpointError(
        f'export: logits of {name} differ from the model by {value:.1e} '
        f'(allowed {allowed:.0e}); nothing was changed, leave that format '
        'out and report this'
      )


def _sizes(directory: epath.Path) -> dict[str, int]:
  """Bytes of every file; `params` as a whole."""
  return {
    path.name: _bytes(path)
    for path in sorted(directory.iterdir())
    if path.name != 'model.json'
  }


def _bytes(path: epath.Path) -> int:
  if path.is_dir():
    return sum(map(_bytes, path.iterdir()))
  return path.stat().length


def _versions() -> dict[str, str]:
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {
    'lambda_vit_jax': __version__,
    'python': platform.python_version(),
    **found,
  }
