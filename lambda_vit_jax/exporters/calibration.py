"""Int8 with calibrated activations, by onnxruntime's and OpenVINO's tools.

`int8_arithmetic=static`: scales of activations are constants, found on images,
so that a runtime has nothing to measure while it runs. Half of the images
calibrate, the others tell what accuracy that costs.
"""

import contextlib
import dataclasses
import io
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from lambda_vit_jax.core.errors import CheckpointError, DataError, UsageError
from lambda_vit_jax.core.images import check_classes
from lambda_vit_jax.core.preprocessing import IGNORED
from lambda_vit_jax.exporters.comparison import Program
from lambda_vit_jax.exporters.extras import import_extra
from lambda_vit_jax.models.model import Model

STATIC = 'static'
"""As `int8_arithmetic`; `static:LOSS` accepts another loss of accuracy."""

_ACCEPTED_LOSS = 0.005
_FEWEST_IMAGES = 2
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Calibration:
  """What int8 files are calibrated and judged on.

  Attributes:
    images: `[number, height, width, channels]` float32, normalised. The even
      ones calibrate, the odd ones are for the accuracy.
    labels: class indices, one per image; None to take those that the float32
      model predicts.
    accepted_loss: of accuracy, as a fraction of the images.
  """

  images: np.ndarray
  labels: np.ndarray | None
  accepted_loss: float

  def batches(self, first: int) -> Iterator[np.ndarray]:
    """Every second image from `first` on, in batches."""
    chosen = self.images[first::2]
    for start in range(0, len(chosen), _BATCH):
      yield chosen[start : start + _BATCH]


def accepted_loss(arithmetic: str) -> float:
  """Reads the loss of `static` or `static:LOSS`.

  Raises:
    UsageError: not a number from 0 to 1.
  """
  _, colon, text = arithmetic.partition(':')
  if not colon:
    return _ACCEPTED_LOSS
  try:
    loss = float(text)
  except ValueError:
    loss = -1.0
  if not 0 <= loss <= 1:
    raise UsageError(
      f'export.int8_arithmetic={arithmetic!r}: the loss of accuracy must be a '
      'number from 0 to 1, static:0.01'
    )
  return loss


def make_calibration(
  model: Model,
  images: np.ndarray | None,
  labels: np.ndarray | None,
  arithmetic: str,
) -> Calibration:
  """Prepares images, which the model's call has checked.

  Raises:
    DataError: too few images, or other than one class index for each (for each
      pixel, where the model segments).
  """
  if images is None or len(images) < _FEWEST_IMAGES:
    raise DataError(
      'int8_arithmetic=static is calibrated on images: give check_images, some '
      'hundreds (in a run, config.data.holdout_images)'
    )
  if labels is not None:
    _check_labels(model, images, labels)
  return Calibration(images, labels, accepted_loss(arithmetic))


def _check_labels(model: Model, images: np.ndarray, labels: np.ndarray) -> None:
  """Refuses labels by which every network would be wrong."""
  segments = model.module.segmentation is not None
  shape = images.shape[:3] if segments else images.shape[:1]
  if len(labels) != len(images):
    raise DataError(
      f'check_images: {len(labels)} labels for {len(images)} images; give one '
      'each'
    )
  if labels.shape != shape or labels.dtype.kind not in 'iu':
    raise DataError(
      f'check_images: labels of type {labels.dtype} and shape {labels.shape}; '
      f'give class indices of shape {shape}'
    )
  least = IGNORED if segments else 0
  check_classes(labels, model.num_classes, 'check_images: labels are', least)
  if labels[1::2].max() == IGNORED:
    raise DataError(
      'check_images: the odd images, which the accuracy is measured on, have no '
      'pixel with a class; give others'
    )


def quantize_onnx(data: bytes, calibration: Calibration) -> bytes:
  """Quantises the products with weights of an ONNX file, in QDQ form.

  Products within attention stay in float32: their factors are activations
  both, which costs accuracy and gains little.
  """
  onnx = import_extra('onnx', 'int8_arithmetic=static')
  quantization = _import_quantization()
  base: Any = quantization.CalibrationDataReader

  class Reader(base):
    def __init__(self) -> None:
      self.batches = calibration.batches(0)

    def get_next(self) -> dict[str, np.ndarray] | None:
      batch = next(self.batches, None)
      return None if batch is None else {'images': batch}

  network = onnx.load_from_string(data)
  weights = {array.name for array in network.graph.initializer}
  excluded = []
  for index, node in enumerate(network.graph.node):
    # The quantiser excludes nodes by name, which ours do not need otherwise.
    node.name = f'node_{index}'
    if node.op_type == 'MatMul' and node.input[1] not in weights:
      excluded.append(node.name)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    quantization.shape_inference.quant_pre_process(
      network,
      str(folder / 'shaped.onnx'),
      # It would fuse products, which then have other names.
      skip_optimization=True,
      # The graph has no shapes that depend on values.
      skip_symbolic_shape=True,
    )
    quantization.quantize_static(
      str(folder / 'shaped.onnx'),
      str(folder / 'int8.onnx'),
      Reader(),
      quant_format=quantization.QuantFormat.QDQ,
      op_types_to_quantize=['MatMul'],
      nodes_to_exclude=excluded,
      per_channel=True,
      activation_type=quantization.QuantType.QUInt8,
      weight_type=quantization.QuantType.QInt8,
      # Processors without VNNI add pairs of products in 16 bits, which eight
      # bits overflow without a word: weights have seven.
      reduce_range=True,
      extra_options={
        # Sums are added to a bias in float32.
        'OpTypesToExcludeOutputQuantization': ['MatMul'],
        # The mean over batches: the largest value of all images is an outlier.
        'CalibMovingAverage': True,
      },
    )
    return (folder / 'int8.onnx').read_bytes()


def _import_quantization() -> Any:
  import_extra('onnxruntime', 'int8_arithmetic=static')
  name = 'onnxruntime.quantization'
  import_extra(f'{name}.shape_inference', 'int8_arithmetic=static')
  return import_extra(name, 'int8_arithmetic=static')


def quantize_openvino(network: Any, calibration: Calibration) -> Any:
  """Quantises an OpenVINO network with NNCF, as its guide does for ViTs."""
  nncf = import_extra('nncf', 'int8_arithmetic=static')
  batches = list(calibration.batches(0))
  advanced = nncf.AdvancedQuantizationParameters(
    # Seven bits for all weights, as in `quantize_onnx`.
    overflow_fix=nncf.OverflowFix.ENABLE
  )
  # Its progress bars would be among what `--json` prints.
  with contextlib.redirect_stdout(io.StringIO()):
    return nncf.quantize(
      network,
      nncf.Dataset(batches),
      model_type=nncf.ModelType.TRANSFORMER,
      preset=nncf.QuantizationPreset.MIXED,
      subset_size=len(batches),
      advanced_parameters=advanced,
    )


def accuracy(
  model: Program, program: Program, calibration: Calibration
) -> dict[str, Any]:
  """Compares two programs on the images that did not calibrate.

  Args:
    model: in float32.
    program: in int8.
    calibration: with labels, or the model's own classes are the labels.

  Returns:
    `top1` of the program, `top1_float32` of the model, fractions of the images
    (of the pixels that have a class, where each has one), and `num_images`.
  """
  batches = list(calibration.batches(1))
  expected, found = (
    np.concatenate([np.asarray(run(b)).argmax(axis=-1) for b in batches])
    for run in (model, program)
  )
  labels = expected if calibration.labels is None else calibration.labels[1::2]
  judged = labels != IGNORED
  return {
    'top1': float((found == labels)[judged].mean()),
    'top1_float32': float((expected == labels)[judged].mean()),
    'num_images': len(expected),
  }


def check_loss(name: str, scores: dict[str, Any], accepted: float) -> None:
  """Refuses a file that lost more accuracy than is accepted.

  Raises:
    CheckpointError: it did; nothing was changed.
  """
  loss = scores['top1_float32'] - scores['top1']
  if loss > accepted:
    raise CheckpointError(
      f'export: {name} in int8 has a top-1 of {100 * scores["top1"]:.2f}% '
      f'against {100 * scores["top1_float32"]:.2f}%, a loss above '
      f'{100 * accepted:g}%; calibrate on more images, or accept it with '
      'int8_arithmetic=static:LOSS'
    )
