"""The portable files of an export: each a writer, and how to run it back.

All of them hold the folded model (METHOD, section 2): a plain ViT without the
factor 2, in which removed attentions do not exist.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath
from jax import export as jax_export
from safetensors import numpy as safetensors_numpy

from lambda_vit_jax.checkpoints import convert, readers, timm_config
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.core import digests
from lambda_vit_jax.core.errors import CheckpointError, ModelError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.exporters.onnx import graph as graph_lib
from lambda_vit_jax.exporters.onnx import vit
from lambda_vit_jax.models import modes as modes_lib
from lambda_vit_jax.models import surgery
from lambda_vit_jax.models.build import abstract_params, apply_module
from lambda_vit_jax.models.model import Model

PLATFORMS = ('cpu', 'cuda', 'tpu')
"""What a `model.stablehlo` runs on."""

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float16': np.dtype(np.float16),
}
"""Storage types of the portable files; computation stays in float32."""

INT8 = 'int8'
"""Beside those: the export of a quantised model."""

# Half a unit in the last place of float16 is 2^-11; an array whose numbers
# lie below its normal range loses more.
_FLOAT16_ERROR = 2.0**-10


def cast_params(params: Params, dtype: str) -> tuple[Params, list[str]]:
  """Parameters in a storage dtype, where they survive it.

  Args:
    params: float32 arrays.
    dtype: a key of `DTYPES`.

  Returns:
    The tree, and the paths of arrays that stay float32 because float16 would
    overflow or lose more than its rounding on them (in the L2 norm).
  """
  kept: list[str] = []
  flat = {}
  for path, leaf in convert.flatten(params).items():
    array = np.asarray(leaf)
    with np.errstate(over='ignore'):
      cast = array.astype(DTYPES[dtype])
    if dtype == 'float16':
      exact = array.astype(np.float64)
      error = np.linalg.norm(cast.astype(np.float64) - exact)
      if not error <= _FLOAT16_ERROR * np.linalg.norm(exact):
        cast = array
        kept.append(path)
    flat[path] = cast
  return convert.unflatten(flat), kept


def stored_model(folded: Model, dtype: str) -> tuple[Model, list[str]]:
  """`folded` with the numbers that the files will hold, for `cast_params`.

  A quantised model holds them already.
  """
  if dtype == INT8:
    return folded, []
  params, kept = cast_params(folded.params, dtype)
  # Arrays of JAX: a cast of theirs is traced, and the program keeps the
  # stored type.
  params = jax.tree.map(jnp.asarray, params)
  return folded.replace(params=params), kept


def program(model: Model) -> Callable[[Array], Array]:
  """Images to logits, closed over the parameters; traceable."""

  def predict(images: Array) -> Array:
    return apply_module(model.module, model.params, images, capture=False)[0]

  return predict


def fill_with_zeros(model: Model) -> Model:
  """A folded model in whose removed blocks the attention computes zeros.

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
    name = modes_lib.block_name(index)
    params[name] = params[name] | {
      part: jax.tree.map(
        lambda s: np.zeros(s.shape, s.dtype), shapes[name][part]
      )
      for part in surgery.ATTENTION_PARTS
      if part in shapes[name]
    }
  return model.replace(module=module, params=params)


def write_safetensors(
  directory: epath.Path, folded: Model, zero_fill: bool
) -> None:
  """`model.safetensors` with timm's names, and timm's `config.json`.

  The header repeats the description, so that the file can be moved alone.
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


def write_stablehlo(path: epath.Path, folded: Model) -> None:
  """The whole program with its weights, for any batch size.

  `jax.export.deserialize(path.read_bytes()).call(images)` runs it: float32
  images `[batch, height, width, channels]` to logits `[batch, num_classes]`.
  """
  module = folded.module
  height, width = module.image_size
  (batch,) = jax_export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct(
    (batch, height, width, module.in_chans), jnp.float32
  )
  exported = jax_export.export(jax.jit(program(folded)), platforms=PLATFORMS)(
    images
  )
  path.write_bytes(bytes(exported.serialize()))


def read_stablehlo(path: epath.Path) -> Callable[[Array], Array]:
  """The program of `write_stablehlo`, none of our code in it.

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
  """`model.onnx`: input `images` NHWC, any batch, output `logits`.

  Raises:
    LambdaVitError: the extra `[onnx]` is not installed, or the model is too
      large for one ONNX file.
  """
  graph = vit.build(folded, DTYPES.get(dtype, np.dtype(np.float32)))
  path.write_bytes(graph_lib.serialize(graph))


def read_onnx(path: epath.Path) -> Callable[[Array], Array]:
  """`model.onnx` in onnxruntime on the CPU.

  Raises:
    LambdaVitError: the extra `[onnx]` is not installed.
  """
  session = graph_lib.import_extra('onnxruntime').InferenceSession(
    path.read_bytes(), providers=['CPUExecutionProvider']
  )

  def predict(images: Array) -> Array:
    return session.run(['logits'], {'images': np.asarray(images, np.float32)})[
      0
    ]

  return predict


def difference(reference: Array, found: Array, typical: bool = False) -> float:
  """`max |found - reference| / max(1, max |reference|)`; inf if not finite.

  Args:
    reference: `[batch, ..., num_classes]`.
    found: what should be the same.
    typical: of the median image instead of the worst.
  """
  reference = np.asarray(reference, np.float64)
  found = np.asarray(found, np.float64)
  if reference.shape != found.shape:
    return math.inf
  largest = max(1.0, float(np.abs(reference).max()))
  each = np.abs(found - reference).reshape(len(found), -1).max(axis=1) / largest
  worst = float(np.median(each) if typical else each.max())
  return worst if math.isfinite(worst) else math.inf


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
  """Checks compare programs, not an accelerator's short products."""
  with jax.default_matmul_precision('highest'):
    yield
