"""OpenVINO's format: `model.xml` and `model.bin`, made from our ONNX."""

import pathlib
import tempfile
from typing import Any

import numpy as np
from etils import epath

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.exporters.comparison import Program
from lambda_vit_jax.exporters.extras import import_extra, leave_out

FILES = ('model.xml', 'model.bin')


def _import() -> Any:
  return import_extra('openvino', 'format openvino', leave_out('openvino'))


def from_onnx(data: bytes) -> Any:
  """Converts an ONNX file to a network of OpenVINO."""
  return _import().Core().read_model(data)


def write(folder: epath.Path, network: Any) -> None:
  """Writes both files, with the weights in float16.

  OpenVINO itself keeps those in float32 that float16 cannot hold.
  """
  with tempfile.TemporaryDirectory() as scratch:
    local = pathlib.Path(scratch)
    _import().save_model(network, str(local / FILES[0]), compress_to_fp16=True)
    for name in FILES:
      (folder / name).write_bytes((local / name).read_bytes())


def read(path: epath.Path, precision: str = 'f32', threads: int = 0) -> Program:
  """Loads a `model.xml` or a `model.onnx` in OpenVINO on the CPU.

  Args:
    path: the file; the weights of a `.xml` are beside it.
    precision: of the computation, `f32` or `bf16`. On processors with bfloat16
      OpenVINO would take that by itself.
    threads: 0 for all cores.
  """
  core = _import().Core()
  # From memory: the folder may be remote.
  data = [path.read_bytes()]
  if path.suffix == '.xml':
    data.append(path.with_suffix('.bin').read_bytes())
  network = core.read_model(*data)
  compiled = core.compile_model(
    network,
    'CPU',
    {
      'INFERENCE_PRECISION_HINT': precision,
      'INFERENCE_NUM_THREADS': threads,
      'PERFORMANCE_HINT': 'LATENCY',
    },
  )

  def run(images: Array) -> Array:
    # A copy: the next call writes over the result.
    return np.array(compiled(np.asarray(images, np.float32))[0])

  return run
