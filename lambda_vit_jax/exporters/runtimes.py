"""Open an export in each runtime that people deploy with.

To add a runtime, write a function that opens a file of an export and give it an
entry in `RUNTIMES`. Libraries are imported when a runtime is opened.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lambda_vit_jax.checkpoints.load import (
  check_exported,
  load_export,
  read_description,
)
from lambda_vit_jax.core import processor
from lambda_vit_jax.core.errors import (
  CheckpointError,
  LambdaVitError,
  ModelError,
  UsageError,
  nearest,
)
from lambda_vit_jax.core.files import user_path
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.exporters import openvino_ir
from lambda_vit_jax.exporters.comparison import Program
from lambda_vit_jax.exporters.extras import EXTRAS, import_extra, is_installed
from lambda_vit_jax.exporters.formats import read_stablehlo
from lambda_vit_jax.models.build import forward
from lambda_vit_jax.models.edits import quantize

# What is read with a file.
_BESIDE = {'model.xml': ('model.bin',), 'model.safetensors': ('config.json',)}


@dataclasses.dataclass(frozen=True)
class Runtime:
  """How one runtime opens an export.

  Attributes:
    packages: what has to be installed besides this package.
    format: of `FORMATS`, what to write for it.
    files: of an export, those that it opens; the first that is there is.
    dtypes: what it computes in on this machine.
    open: takes the file and one of `dtypes`, and returns the program.
    calibrated: whether int8 is a file of its own, `int8_arithmetic=static`.
  """

  packages: tuple[str, ...]
  format: str
  files: tuple[str, ...]
  dtypes: Callable[[], tuple[str, ...]]
  open: Callable[[epath.Path, str], Program]
  calibrated: bool = False


def available_cores() -> int:
  """Cores that this process may use; each runtime gets as many threads."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _with_bfloat16(*dtypes: str) -> tuple[str, ...]:
  """Adds bfloat16 on processors that compute in it."""
  return (*dtypes, 'bfloat16') if processor.has_bfloat16() else dtypes


def _jax_dtypes() -> tuple[str, ...]:
  # XLA converts bfloat16 to float32 and back on CPUs (docs/performance.md).
  on_cpu = jax.default_backend() == 'cpu'
  return ('float32', 'int8') if on_cpu else ('float32', 'bfloat16', 'int8')


def _open_jax(path: epath.Path, dtype: str) -> Program:
  """Opens `model.stablehlo`, or the model in `params/` in any dtype."""
  if path.name != 'params':
    return read_stablehlo(path)
  model = load_export(path.parent)
  if dtype == 'int8' and model.module.quantization == 'none':
    model = quantize(model, 'dynamic')
  if dtype == 'bfloat16':
    model = model.replace(module=model.module.clone(dtype=jnp.bfloat16))
  module, params = model.module, jax.tree.map(jnp.asarray, model.params)
  return lambda images: forward(module, params, jnp.asarray(images))[0]


def _open_onnxruntime(path: epath.Path, dtype: str) -> Program:
  onnxruntime = import_extra('onnxruntime', 'runtime onnxruntime')
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = available_cores()
  session = onnxruntime.InferenceSession(
    path.read_bytes(), options, providers=['CPUExecutionProvider']
  )

  def run(images: Array) -> Array:
    feed = {'images': np.asarray(images, np.float32)}
    return session.run(['logits'], feed)[0]

  return run


def _open_openvino(path: epath.Path, dtype: str) -> Program:
  precision = 'bf16' if dtype == 'bfloat16' else 'f32'
  return openvino_ir.read(path, precision, available_cores())


def _open_torch(path: epath.Path, dtype: str) -> Program:
  torch = import_extra('torch', 'runtime torch')
  import_extra('timm', 'runtime torch')
  if any(read_description(path.parent / 'model.json').get('merge', ())):
    raise ModelError(
      f'{path.parent}: merges tokens, which its file for PyTorch leaves to the '
      'reader; take another runtime'
    )
  from lambda_vit_jax.exporters import pytorch

  torch.set_num_threads(available_cores())
  model = pytorch.load(os.fspath(path.parent))
  kind = torch.bfloat16 if dtype == 'bfloat16' else torch.float32
  model = model.to(kind)

  def run(images: Array) -> Array:
    batch = torch.from_numpy(np.array(images, np.float32))
    with torch.inference_mode():
      return model(batch.permute(0, 3, 1, 2).to(kind)).float().numpy()

  return run


RUNTIMES = {
  'jax': Runtime(
    packages=(),
    format='orbax',
    files=('model.stablehlo', 'params'),
    dtypes=_jax_dtypes,
    open=_open_jax,
  ),
  'onnxruntime': Runtime(
    packages=('onnx', 'onnxruntime'),
    format='onnx',
    files=('model.onnx',),
    dtypes=lambda: ('float32', 'int8'),
    calibrated=True,
    open=_open_onnxruntime,
  ),
  'openvino': Runtime(
    packages=('onnx', 'openvino', 'nncf'),
    format='openvino',
    files=('model.xml', 'model.onnx'),
    dtypes=lambda: (*_with_bfloat16('float32'), 'int8'),
    calibrated=True,
    open=_open_openvino,
  ),
  'torch': Runtime(
    packages=('torch', 'timm'),
    format='safetensors',
    files=('model.safetensors',),
    dtypes=lambda: _with_bfloat16('float32'),
    open=_open_torch,
  ),
}
"""What `benchmark.runtimes` and `predict --runtime` may name."""


def check_names(names: Iterable[str], where: str) -> None:
  """Checks the names of runtimes.

  Raises:
    UsageError: an unknown one; the message begins with `where`.
  """
  for name in names:
    if name not in RUNTIMES:
      raise UsageError(
        f'{where}: unknown runtime {name!r}{nearest(name, RUNTIMES)}; known '
        f'are {", ".join(RUNTIMES)}'
      )


def missing(name: str) -> str:
  """Returns one line on what a runtime lacks; '' if it is installed."""
  for package in RUNTIMES[name].packages:
    if not is_installed(package):
      return (
        f'runtime {name}: needs the package {package}; install it (pip '
        f"install 'lambda_vit_jax[{EXTRAS[package]}]')"
      )
  return ''


def file_of(name: str, folder: epath.Path) -> epath.Path | None:
  """The file of an export that a runtime opens; None if there is none."""
  paths = (folder / file for file in RUNTIMES[name].files)
  return next((path for path in paths if path.exists()), None)


def stored_dtype(name: str, folder: epath.Path) -> str:
  """What a runtime's file of an export computes in: `int8` or `float32`."""
  fields: dict[str, Any] = read_description(folder / 'model.json')
  stored = fields.get('folded', {}).get('dtype')
  # Calibrated exports have int8 in the files of some runtimes alone.
  everywhere = fields.get('quantization', 'none') != 'none'
  is_int8 = stored == 'int8' and (everywhere or RUNTIMES[name].calibrated)
  return 'int8' if is_int8 else 'float32'


def open_export(
  name: str, directory: str | epath.PathLike, dtype: str = ''
) -> Program:
  """Opens an export in a runtime.

  Args:
    name: of `RUNTIMES`.
    directory: written by the stage `export` or `lv.export`.
    dtype: of the runtime's `dtypes`; that of the export by default.

  Returns:
    A function from normalised NHWC float32 images to float32 logits. It takes
    `available_cores` threads.

  Raises:
    UsageError: an unknown runtime.
    LambdaVitError: one that is not installed.
    CheckpointError: no file for it, or one that it cannot open.
  """
  check_names([name], '--runtime')
  line = missing(name)
  if line:
    raise LambdaVitError(line)
  folder = user_path(directory)
  path = file_of(name, folder)
  if path is None:
    raise CheckpointError(
      f'{folder}: no file that {name} opens '
      f'({" or ".join(RUNTIMES[name].files)}); export with '
      f'`{RUNTIMES[name].format}` among the formats'
    )
  for file in (path.name, *_BESIDE.get(path.name, ())):
    check_exported(folder, file)
  try:
    return RUNTIMES[name].open(path, dtype or stored_dtype(name, folder))
  except LambdaVitError:
    raise
  except Exception as error:
    # Each library has error types of its own.
    reason = ' '.join(str(error).split())[:120]
    raise CheckpointError(
      f'{path}: {name} cannot open it ({type(error).__name__}: {reason}); '
      'export the model again, or take another runtime'
    ) from error
