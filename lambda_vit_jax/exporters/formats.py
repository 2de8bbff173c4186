"""The export formats: for each a writer, and a reader to check it with.

To add a format, write its two functions and give it an entry in `FORMATS`.
All formats but `orbax` hold the folded model (docs/method.md#folding): a
plain ViT without factors of 2, in which removed attention layers have no
arrays.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export as jax_export
from safetensors import numpy as safetensors_numpy

from lambda_vit_jax.checkpoints import (
  convert,
  orbax_store,
  readers,
  timm_config,
)
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.checkpoints.load import load_export, load_pretrained
from lambda_vit_jax.core import digests
from lambda_vit_jax.core.errors import CheckpointError, ModelError
from lambda_vit_jax.core.files import write_json
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.exporters.comparison import Program
from lambda_vit_jax.exporters.onnx import graph as onnx_graph
from lambda_vit_jax.exporters.onnx import vit as onnx_vit
from lambda_vit_jax.exporters.source import Source, plain, with_stock_epsilon
from lambda_vit_jax.exporters.storage import DTYPES
from lambda_vit_jax.models.build import abstract_params, apply_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import ATTENTION_PARTS, block_name
from lambda_vit_jax.models.quantization import QUANTIZATIONS

PLATFORMS = ('cpu', 'cuda', 'tpu')
"""Devices that can run a `model.stablehlo`."""

# Largest difference of a stock program's logits without a warning.
_STOCK_WARNING = 1e-3


def write_orbax(directory: epath.Path, source: Source) -> None:
  """Writes `params/` and as much of `model.json` as `load_export` reads."""
  orbax_store.save_tree(directory / 'params', source.model.params)
  write_json(
    directory / 'model.json', describe(source.model) | {'format_version': 1}
  )


def _dequantized(source: Source) -> dict[str, Program]:
  """The float32 model beside the quantised one."""
  return {'quantization': source.unquantized} if source.is_quantized else {}


def fill_with_zeros(model: Model) -> Model:
  """Gives removed blocks of a folded model attention layers of zeros.

  Raises:
    ModelError: a block in mode `linear`, which no attention can stand for.
  """
  modes = model.attention_modes
  linear = [i for i, mode in enumerate(modes) if mode == 'linear']
  if linear:
    raise ModelError(
      f'zero_fill: block {linear[0]} is a linear map, which no stock attention '
      'can stand for; export without zero_fill'
    )
  module = model.module.clone(attention_modes=('full',) * model.depth)
  shapes = abstract_params(module)
  params = dict(model.params)
  for index in model.removed_layers:
    name = block_name(index)
    params[name] = params[name] | {
      part: jax.tree.map(
        lambda s: np.zeros(s.shape, s.dtype), shapes[name][part]
      )
      for part in ATTENTION_PARTS
      if part in shapes[name]
    }
  return model.replace(module=module, params=params)


def write_safetensors(
  directory: epath.Path, folded: Model, zero_fill: bool
) -> None:
  """Writes `model.safetensors` with timm's names, and timm's `config.json`.

  The header repeats the model's description, so that the file can be moved
  alone.
  """
  fields = describe(folded) | {'zero_filled': zero_fill}
  description = json.dumps(fields, allow_nan=False)
  model = fill_with_zeros(folded) if zero_fill else folded
  arrays = convert.encode(model.params)
  digest = digests.of_arrays(arrays, arrays.__getitem__, description)
  data = safetensors_numpy.save(
    arrays,
    metadata={
      'format': 'pt',
      readers.METADATA_KEY: description,
      readers.DIGEST_KEY: digest,
    },
  )
  (directory / 'model.safetensors').write_bytes(data)
  config = timm_config.write_config(folded) | {
    'attention_modes': list(folded.attention_modes),
    'norm_eps': list(folded.module.norm_eps),
    'zero_filled': zero_fill,
    'quantization': folded.module.quantization,
  }
  (directory / 'config.json').write_text(json.dumps(config, indent=2) + '\n')


def _safetensors_warnings(
  source: Source, differences: Mapping[str, float]
) -> list[str]:
  """What programs that know timm alone do not do with the file."""
  warnings = []
  if differences['stock_epsilon'] > _STOCK_WARNING:
    warnings.append(
      'model.safetensors: a program with one epsilon for all norms returns '
      f'logits that differ by {differences["stock_epsilon"]:.1e}; set each '
      "norm's epsilon from config.json"
    )
  if source.merges_tokens:
    warnings.append(
      'model.safetensors: programs that know timm alone compute the network '
      'without its token merging; use model.stablehlo, model.onnx or this '
      'package'
    )
  if source.is_quantized:
    warnings.append(
      'model.safetensors: matrices are int8; other programs have to load '
      'weight * weight_scale in place of each weight'
    )
  return warnings


def write_stablehlo(path: epath.Path, folded: Model) -> None:
  """Writes the whole program with its weights, for any batch size.

  `jax.export.deserialize(path.read_bytes()).call(images)` runs it: float32
  images `[batch, height, width, channels]` to logits `[batch, num_classes]`.
  """
  module, params = folded.module, folded.params

  def predict(images: Array) -> Array:
    return apply_module(module, params, images, capture=False)[0]

  height, width = module.image_size
  (batch,) = jax_export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct(
    (batch, height, width, module.in_chans), jnp.float32
  )
  exported = jax_export.export(jax.jit(predict), platforms=PLATFORMS)(images)
  path.write_bytes(bytes(exported.serialize()))


def read_stablehlo(path: epath.Path) -> Program:
  """Loads a `model.stablehlo`; running it needs none of our code.

  Raises:
    CheckpointError: not such a file.
  """
  try:
    return jax.jit(jax_export.deserialize(bytearray(path.read_bytes())).call)
  except Exception as error:
    # The deserialiser has no error type of its own.
    raise CheckpointError(
      f'{path}: not a program of jax.export ({type(error).__name__}); export '
      'the model again'
    ) from error


def write_onnx(path: epath.Path, folded: Model, dtype: str) -> None:
  """Writes `model.onnx`: input `images` (NHWC, any batch), output `logits`.

  Raises:
    LambdaVitError: the extra `[onnx]` is not installed, or the model is too
      large for one ONNX file.
  """
  graph = onnx_vit.build(folded, DTYPES.get(dtype, np.dtype(np.float32)))
  path.write_bytes(onnx_graph.serialize(graph))


def read_onnx(path: epath.Path) -> Program:
  """Loads a `model.onnx` in onnxruntime on the CPU.

  Raises:
    LambdaVitError: the extra `[onnx]` is not installed.
  """
  session = onnx_graph.import_extra('onnxruntime').InferenceSession(
    path.read_bytes(), providers=['CPUExecutionProvider']
  )

  def predict(images: Array) -> Array:
    inputs = {'images': np.asarray(images, np.float32)}
    return session.run(['logits'], inputs)[0]

  return predict


def _no_programs(source: Source) -> dict[str, Program]:
  del source
  return {}


def _no_warnings(source: Source, differences: Mapping[str, float]) -> list[str]:
  del source, differences
  return []


@dataclasses.dataclass(frozen=True)
class Format:
  """How one format is written, checked and warned about.

  Attributes:
    write: writes its files into a folder.
    read: loads them back from that folder as a program, whose logits have to
      be the model's.
    others: more programs to compare, by name; their differences are recorded
      only.
    warnings: lines to show, given the differences by name.
    int8_arithmetic: the forms of int8 arithmetic that it can express.
  """

  write: Callable[[epath.Path, Source], None]
  read: Callable[[epath.Path], Program]
  others: Callable[[Source], dict[str, Program]] = _no_programs
  warnings: Callable[[Source, Mapping[str, float]], list[str]] = _no_warnings
  int8_arithmetic: tuple[str, ...] = QUANTIZATIONS[1:]


FORMATS = {
  'orbax': Format(
    write=write_orbax,
    read=lambda directory: plain(load_export(directory)),
    others=_dequantized,
  ),
  'safetensors': Format(
    write=lambda directory, source: write_safetensors(
      directory, source.stored, source.zero_fill
    ),
    read=lambda directory: plain(
      load_pretrained(directory / 'model.safetensors')
    ),
    others=lambda source: {'stock_epsilon': with_stock_epsilon(source)},
    warnings=_safetensors_warnings,
  ),
  'stablehlo': Format(
    write=lambda directory, source: write_stablehlo(
      directory / 'model.stablehlo', source.stored
    ),
    read=lambda directory: read_stablehlo(directory / 'model.stablehlo'),
  ),
  'onnx': Format(
    write=lambda directory, source: write_onnx(
      directory / 'model.onnx', source.stored, source.dtype
    ),
    read=lambda directory: read_onnx(directory / 'model.onnx'),
    int8_arithmetic=('weights',),
  ),
}
"""What `export.formats` may name, in the order they are written."""

ALWAYS = 'orbax'
"""The format that we load ourselves, part of every export."""
