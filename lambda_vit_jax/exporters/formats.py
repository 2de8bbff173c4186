"""The export formats: for each a writer, and a reader to check it with.

To add a format, write its two functions and give it an entry in `FORMATS`.
All formats but `orbax` hold the folded model (docs/method.md#folding): a
plain ViT without factors of 2, in which removed attention layers have no
arrays.
"""

import dataclasses
import json
import math
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
  transformers_config,
)
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.checkpoints.layout_tables import stock_layout
from lambda_vit_jax.checkpoints.load import load_export, load_pretrained
from lambda_vit_jax.checkpoints.timm_config import write_config
from lambda_vit_jax.core import digests, processor
from lambda_vit_jax.core.errors import CheckpointError, ModelError
from lambda_vit_jax.core.files import parse_json, write_json
from lambda_vit_jax.core.schema import Anything
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.exporters import calibration, openvino_ir
from lambda_vit_jax.exporters.calibration import STATIC
from lambda_vit_jax.exporters.comparison import Program
from lambda_vit_jax.exporters.extras import import_extra, leave_out
from lambda_vit_jax.exporters.onnx import graph, vit
from lambda_vit_jax.exporters.source import ARITHMETICS, Source, plain
from lambda_vit_jax.models import surgery
from lambda_vit_jax.models.build import (
  abstract_params,
  apply_module,
  with_mlp_dims,
)
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.quantization import QUANTIZATIONS
from lambda_vit_jax.models.variants import get_variant

EXACT = 1e-4
"""Largest difference (see `comparison.difference`) of exact files."""

# The same, with weights rounded to float16: each is off by at most 2^-11 of
# itself, and networks add that up over their blocks.
_FLOAT16_WEIGHTS = 1e-2

# Largest difference of a stock program's logits without a warning.
_STOCK_WARNING = 1e-3


def write_orbax(folder: epath.Path, source: Source) -> None:
  """Writes `params/` and as much of `model.json` as `load_export` reads."""
  orbax_store.save_tree(folder / 'params', source.model.params)
  write_json(
    folder / 'model.json', describe(source.model) | {'format_version': 1}
  )


def write_safetensors(folder: epath.Path, source: Source) -> None:
  """Writes `model.safetensors` with timm's names, and timm's `config.json`.

  The header repeats the model's description, so that the file can be moved
  alone.

  Raises:
    ModelError: zeros in place of a block in mode `linear`.
  """
  model = source.stored
  fields = describe(model) | {'zero_filled': source.zero_fill}
  description = json.dumps(fields, allow_nan=False)
  params = _zero_filled(model) if source.zero_fill else model.params
  timm_class = get_variant(model.variant).timm_class
  arrays = convert.encode(params, stock_layout(timm_class).rules)
  digest = digests.of_arrays(arrays, arrays.__getitem__, description)
  data = safetensors_numpy.save(
    arrays,
    metadata={
      'format': 'pt',
      readers.METADATA_KEY: description,
      readers.DIGEST_KEY: digest,
    },
  )
  _write_in_fixed_order(folder / 'model.safetensors', data)
  stored = model if not source.zero_fill else _wide(model)
  ours = ('attention_modes', 'norm_eps', 'zero_filled', 'quantization', 'merge')
  config = write_config(stored) | {n: fields[n] for n in ours}
  config['mlp_dims'] = list(stored.mlp_dims)
  write_json(folder / 'config.json', config)


def write_transformers(folder: epath.Path, source: Source) -> None:
  """Writes `transformers/`, which `AutoModel.from_pretrained` loads.

  Its networks have all attention layers: those that are removed are zeros.

  Raises:
    ModelError: a model that none of its classes computes.
  """
  model = source.stored
  entry, layout = transformers_config.class_of(model)
  arrays = convert.encode(_zero_filled(model), layout.rules)
  if entry.mask_axes:
    prefix = f'{entry.model_type}.' if model.num_classes else ''
    shape = (1,) * (entry.mask_axes - 1) + (model.module.embed_dim,)
    arrays[f'{prefix}embeddings.mask_token'] = np.zeros(shape, np.float32)
  place = folder / 'transformers'
  place.mkdir()
  data = safetensors_numpy.save(arrays, metadata={'format': 'pt'})
  _write_in_fixed_order(place / 'model.safetensors', data)
  config = transformers_config.write_config(source.model)
  write_json(place / 'config.json', config)
  images = transformers_config.write_preprocessing(model)
  write_json(place / transformers_config.IMAGES, images)


def _write_in_fixed_order(path: epath.Path, data: bytes) -> None:
  """Writes a safetensors file with its metadata sorted by name.

  The library's order differs from call to call; two exports of one model are
  to be the same bytes.
  """
  size = int.from_bytes(data[:8], 'little')
  header = parse_json(data[8 : 8 + size], str(path), Anything())
  header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
  text = json.dumps(header, separators=(',', ':')).encode()
  # Arrays begin at a multiple of 8 bytes.
  text = text.ljust(-(-len(text) // 8) * 8)
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    file.write(memoryview(data)[8 + size :])


def _zero_filled(model: Model) -> Params:
  """Parameters with zeros for attention layers and neurons that are gone."""
  modes = model.attention_modes
  if 'linear' in modes:
    raise ModelError(
      f'block {modes.index("linear")} is a linear map, which no stock '
      'attention can stand for; export without zero_fill, and without '
      'the format transformers'
    )
  module = _wide(model).module.clone(attention_modes=('full',) * model.depth)
  expected = abstract_params(module)
  params = dict(model.params)
  for name in map(block_name, range(model.depth)):
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), expected[name])
    params[name] = zeros | params.get(name, {})
    if 'mlp' in params[name]:
      mlp = surgery.with_zero_neurons(params[name]['mlp'], zeros['mlp'])
      params[name] = params[name] | {'mlp': mlp}
  return params


def _wide(model: Model) -> Model:
  """The model as far as its architecture goes, with MLPs of full width."""
  return model.replace(module=with_mlp_dims(model.module, ()))


def _stock_epsilon(folder: epath.Path, source: Source) -> dict[str, Program]:
  """The folded model with the unfolded model's epsilon in every norm."""
  del folder
  folded = source.folded
  epsilon = source.model.module.norm_eps[-1]
  module = folded.module.clone(norm_eps=(epsilon,) * (folded.depth + 1))
  return {'stock_epsilon': folded.replace(module=module)}


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
  if any(source.model.module.merge_counts):
    warnings.append(
      'model.safetensors: programs that know timm alone compute the network '
      'without its token merging; use model.stablehlo, model.onnx or this '
      'package'
    )
  if source.dtype == 'int8':
    warnings.append(
      'model.safetensors: matrices are int8; other programs have to load '
      'weight * weight_scale in place of each weight'
    )
  return warnings


def write_stablehlo(folder: epath.Path, source: Source) -> None:
  """Writes the whole program with its weights, for any batch size.

  `jax.export.deserialize(path.read_bytes()).call(images)` runs it: float32
  images `[batch, height, width, channels]` to logits `[batch, num_classes]`.
  """
  module, params = source.stored.module, source.stored.params

  def predict(images: Array) -> Array:
    return apply_module(module, params, images, capture=False)[0]

  (batch,) = jax_export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct(
    (batch, *module.image_size, module.in_chans), jnp.float32
  )
  program = jax_export.export(
    jax.jit(predict), platforms=('cpu', 'cuda', 'tpu')
  )(images)
  (folder / 'model.stablehlo').write_bytes(bytes(program.serialize()))


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


def _onnx(source: Source) -> bytes:
  """The contents of a `model.onnx`, before activations are quantised."""
  dtype = 'float32' if source.dtype == 'int8' else source.dtype
  return graph.serialize(vit.build(source.stored, dtype))


def write_onnx(folder: epath.Path, source: Source) -> None:
  """Writes `model.onnx`: input `images` (NHWC, any batch), output `logits`.

  Raises:
    LambdaVitError: the extra `[onnx]` is not installed, or the model is too
      large for one ONNX file.
  """
  data = _onnx(source)
  if source.calibration is not None:
    data = calibration.quantize_onnx(data, source.calibration)
  (folder / 'model.onnx').write_bytes(data)


def read_onnx(path: epath.Path) -> Program:
  """Loads a `model.onnx` in onnxruntime on the CPU.

  Raises:
    LambdaVitError: the extra `[onnx]` is not installed.
  """
  runtime = import_extra('onnxruntime', 'format onnx', leave_out('onnx'))
  session = runtime.InferenceSession(
    path.read_bytes(), providers=['CPUExecutionProvider']
  )
  return lambda images: session.run(
    ['logits'], {'images': np.asarray(images, np.float32)}
  )[0]


def write_openvino(folder: epath.Path, source: Source) -> None:
  """Writes `model.xml` and `model.bin`, made from the ONNX file.

  Raises:
    LambdaVitError: the extra `[openvino]` is not installed, or the model is too
      large for one ONNX file.
  """
  network = openvino_ir.from_onnx(_onnx(source))
  if source.calibration is not None:
    network = calibration.quantize_openvino(network, source.calibration)
  openvino_ir.write(folder, network)


def _openvino_bfloat16(
  folder: epath.Path, source: Source
) -> dict[str, Program]:
  """What OpenVINO computes by itself on processors with bfloat16."""
  if source.calibration is not None or not processor.has_bfloat16():
    return {}
  path = folder / openvino_ir.FILES[0]
  return {'openvino_bfloat16': openvino_ir.read(path, 'bf16')}


def exact(source: Source) -> float:
  """The same function in float32, summed in another order."""
  return math.inf if source.dtype in ('bfloat16', 'float16') else EXACT


def _calibrated(otherwise: float) -> Callable[[Source], float]:
  """Files that are judged by their accuracy where activations are int8."""
  return lambda source: (
    math.inf if source.calibration else max(otherwise, exact(source))
  )


@dataclasses.dataclass(frozen=True)
class Format:
  """How one format is written, checked and warned about.

  Attributes:
    write: writes its files into a folder.
    read: loads them back from that folder as a program, whose logits have to
      be the model's.
    others: more programs to compare, by name, of the folder or of the model;
      their differences are recorded, and have to be finite.
    warnings: lines to show, given the differences by name.
    one_epsilon: whether its programs have one epsilon for all norms, so that
      logits differ by as much as those of `stock_epsilon`.
    int8_arithmetic: the forms of int8 arithmetic that it can express.
    tolerance: largest `comparison.difference` of its logits; infinite where
      they only have to be finite.
    packages: of `extras.EXTRAS`, what has to be installed.
  """

  write: Callable[[epath.Path, Source], None]
  read: Callable[[epath.Path], Program]
  others: Callable[[epath.Path, Source], dict[str, Program]] = (
    lambda folder, source: {}
  )
  warnings: Callable[[Source, Mapping[str, float]], list[str]] = (
    lambda source, differences: []
  )
  one_epsilon: bool = False
  int8_arithmetic: tuple[str, ...] = QUANTIZATIONS[1:]
  tolerance: Callable[[Source], float] = exact
  packages: tuple[str, ...] = ()


FORMATS = {
  'orbax': Format(
    write=write_orbax,
    read=lambda folder: plain(load_export(folder)),
    others=lambda folder, source: (
      {'quantization': source.unquantized}
      if source.dtype == 'int8' and source.calibration is None
      else {}
    ),
    int8_arithmetic=ARITHMETICS,
    tolerance=lambda source: EXACT,
  ),
  'safetensors': Format(
    write=write_safetensors,
    read=lambda folder: plain(load_pretrained(folder / 'model.safetensors')),
    others=_stock_epsilon,
    warnings=_safetensors_warnings,
  ),
  'stablehlo': Format(
    write=write_stablehlo,
    read=lambda folder: read_stablehlo(folder / 'model.stablehlo'),
  ),
  'onnx': Format(
    write=write_onnx,
    read=lambda folder: read_onnx(folder / 'model.onnx'),
    int8_arithmetic=('weights', STATIC),
    tolerance=_calibrated(EXACT),
    packages=('onnx', 'onnxruntime'),
  ),
  'openvino': Format(
    write=write_openvino,
    read=lambda folder: openvino_ir.read(folder / openvino_ir.FILES[0]),
    int8_arithmetic=('weights', STATIC),
    others=_openvino_bfloat16,
    tolerance=_calibrated(_FLOAT16_WEIGHTS),
    packages=('openvino',),
  ),
  'transformers': Format(
    write=write_transformers,
    read=lambda folder: plain(load_pretrained(folder / 'transformers')),
    others=_stock_epsilon,
    one_epsilon=True,
    int8_arithmetic=(),
  ),
}
"""What `export.formats` may name, in the order they are written."""

ALWAYS = 'orbax'
"""The format that we load ourselves, part of every export."""
