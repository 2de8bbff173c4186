"""`Model`: a frozen pair of a Linen module and its parameters.

The rest of the package meets Flax through this file: `make_module`,
`init_params`, `forward` and the `Model` handle.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax import (
  compilation,
  complexity,
  merge_plan,
  quantization,
  surgery,
)
from lambda_vit_jax.errors import ModelError
from lambda_vit_jax.models import decoders
from lambda_vit_jax.models.block import HAS_ATTENTION
from lambda_vit_jax.models.variants import Variant, get_variant
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.preprocessing import Preprocessing
from lambda_vit_jax.typing import Array, AttentionMode, Intermediates, Params


def size_pair(image_size: int | Sequence[int], patch: int) -> tuple[int, int]:
  """(height, width) from an int or a pair.

  Raises:
    ModelError: not divisible by the patch size.
  """
  pair = (
    (image_size, image_size)
    if isinstance(image_size, int)
    else tuple(int(n) for n in image_size)
  )
  if len(pair) != 2:
    raise ModelError(f'image_size {image_size}: give one side, or two')
  if any(n <= 0 or n % patch for n in pair):
    raise ModelError(
      f'image_size {image_size} is not divisible by the patch size {patch}; '
      f'the nearest that fits is {max(1, round(pair[0] / patch)) * patch}'
    )
  return pair


def drop_path_rates(rate: float, depth: int, shape: str) -> tuple[float, ...]:
  """Rates per block: `constant`, or `linear` from 0 to `rate`."""
  if shape == 'constant' or depth == 1:
    return (float(rate),) * depth
  return tuple(float(rate) * i / (depth - 1) for i in range(depth))


def _checked_merge(merge: Any, depth: int) -> tuple[int, ...]:
  """One number of tokens per block, or ()."""
  if not isinstance(merge, tuple) or len(merge) not in (0, depth):
    raise ModelError(
      f'merge={merge!r}: a module takes a tuple of one number per block; '
      'merge_tokens(model, merge) takes the other forms'
    )
  return merge


def _checked_quantization(name: Any) -> str:
  if name not in quantization.QUANTIZATIONS:
    raise ModelError(
      f'quantization {name!r}; known are '
      f'{", ".join(quantization.QUANTIZATIONS)}'
    )
  return str(name)


def make_module(
  variant: Variant | str,
  *,
  num_classes: int | None = None,
  image_size: int | Sequence[int] | None = None,
  attention_modes: Sequence[str] | None = None,
  norm_eps: Sequence[float] | None = None,
  drop_path_rate: float = 0.0,
  in_chans: int | None = None,
  **overrides: Any,
) -> ViT:
  """Builds the Linen module of a variant.

  Args:
    variant: a `Variant` or its name.
    num_classes: classes of the head, 0 for none; the variant's by default.
    image_size: pixels, an int or (height, width); the variant's by default.
    attention_modes: one per block; all `full` by default.
    norm_eps: one per block and the final norm's; the variant's by default.
    drop_path_rate: the largest rate of stochastic depth.
    in_chans: input channels; the variant's by default.
    **overrides: any other field of `ViT` (`dtype`, `remat`, …).

  Raises:
    ModelError: sizes or modes that do not fit.
  """
  if isinstance(variant, str):
    variant = get_variant(variant)
  depth = variant.depth
  size = variant.image_size if image_size is None else image_size
  modes = ('full',) * depth if attention_modes is None else attention_modes
  eps = (variant.norm_eps,) * (depth + 1) if norm_eps is None else norm_eps
  if len(eps) != depth + 1:
    raise ModelError(f'{len(eps)} epsilons; {depth} blocks need {depth + 1}')
  if num_classes is not None and num_classes < 0:
    raise ModelError(f'num_classes {num_classes}: 0 is no head')
  fields: dict[str, Any] = {
    'image_size': size_pair(size, variant.patch_size),
    'num_classes': (
      variant.num_classes if num_classes is None else int(num_classes)
    ),
    'attention_modes': surgery.check_modes(modes, depth),
    'norm_eps': tuple(float(e) for e in eps),
    'pre_norm_eps': variant.norm_eps,
    'drop_path_rates': drop_path_rates(
      drop_path_rate, depth, variant.drop_path_shape
    ),
    'in_chans': variant.in_chans if in_chans is None else int(in_chans),
    'linear_inputs': surgery.check_linear_inputs(
      overrides.pop('linear_inputs', ('token',))
    ),
    'merge': _checked_merge(overrides.pop('merge', ()), depth),
    'quantization': _checked_quantization(
      overrides.pop('quantization', 'none')
    ),
  }
  shared = {field.name for field in dataclasses.fields(Variant)} & set(
    ViT.__dataclass_fields__
  )
  for name in shared - set(fields) - {'name'}:
    fields[name] = getattr(variant, name)
  return ViT(**(fields | overrides))


def init_params(module: ViT, seed: int | Array = 0) -> Params:
  """Fresh float32 parameters, from an int seed or a typed key."""
  key = jax.random.key(seed) if isinstance(seed, int) else seed
  images = jnp.zeros((1, *module.image_size, module.in_chans))
  factor = jnp.ones(module.depth)
  init = jax.jit(functools.partial(module.init, dilution_factor=factor))
  return init(key, images)['params']


def is_head(name: str) -> bool:
  """Whether a top-level parameter belongs to a head or to the decoder."""
  return name.startswith(('head', 'decoder'))


def init_head(module: ViT, seed: int = 0) -> Params:
  """Fresh parameters of the head (or both heads), or of the decoder, alone."""

  def init() -> Params:
    params = init_params(module, seed)
    return {name: params[name] for name in params if is_head(name)}

  # Jitted as a whole: nothing of the rest is computed.
  return jax.jit(init)()


def abstract_params(module: ViT) -> Params:
  """Shapes and dtypes of the parameters; nothing is allocated."""
  return jax.eval_shape(functools.partial(init_params, module, 0))


def apply_module(
  module: ViT, params: Params, images: Array, **options: Any
) -> tuple[Array, Intermediates]:
  """`module` on `images`, traceable; options as in `ViT.__call__`."""
  return module.apply({'params': params}, images, **options)


@compilation.jit(static_argnames=('module', 'capture'))
def forward(
  module: ViT,
  params: Params,
  images: Array,
  dilution_factor: Array | None = None,
  capture: bool = False,
) -> tuple[Array, Intermediates]:
  """Jitted `apply_module`: one compilation per module and image shape."""
  return apply_module(
    module, params, images, dilution_factor=dilution_factor, capture=capture
  )


def count_parameters(params: Params) -> int:
  """Numbers in a tree of arrays (or of shapes)."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def size_of(module: ViT) -> int:
  """Numbers in the parameters of a module with a head, in closed form.

  The same as counting `abstract_params` (but for the scales of a quantised
  one), without tracing the network: a table of all variants is printed at
  once.
  """
  width, patch = module.embed_dim, module.patch_size
  rows, columns = module.grid_size
  hidden = int(width * module.mlp_ratio)
  scale = 0 if module.layer_scale is None else width
  positions = module.num_tokens if module.position_on_class else rows * columns
  total = patch * patch * module.in_chans * width
  total += 2 * width if module.pre_norm else width
  total += (module.num_prefix_tokens + positions) * width
  total += 2 * width + (width + 1) * module.num_classes * (1 + module.distilled)
  for mode in module.attention_modes:
    total += 2 * width + (2 * width + 1) * hidden + width + scale
    if mode in HAS_ATTENTION:
      total += 2 * width + 4 * width * width + width + scale
      total += 3 * width if module.qkv_bias else 0
    elif mode == 'linear':
      maps = 1 + ('class_map' in module.linear_inputs)
      squares = 1 + ('mean' in module.linear_inputs)
      total += maps * (squares * width * width + width)
  return total


@dataclasses.dataclass(frozen=True)
class Model:
  """A Vision Transformer and its parameters.

  Attributes:
    module: the Linen module; holds the attention modes and epsilons.
    params: plain nested dict of arrays.
    variant: name of the variant it was made from.
    preprocessing: how images become its input.
    class_names: one per class, or empty if unknown.
    kept_blocks: the variant's blocks that are left, ascending, where some
      were dropped (`drop_blocks`); empty where none was.
  """

  module: ViT
  params: Params
  variant: str
  preprocessing: Preprocessing
  class_names: tuple[str, ...] = ()
  kept_blocks: tuple[int, ...] = ()

  @property
  def depth(self) -> int:
    """Number of blocks."""
    return self.module.depth

  @property
  def block_origins(self) -> tuple[int, ...]:
    """Per block its index in the variant, before blocks were dropped."""
    return self.kept_blocks or tuple(range(self.depth))

  @property
  def num_classes(self) -> int:
    """Classes of the head, 0 for none."""
    return self.module.num_classes

  @property
  def attention_modes(self) -> tuple[AttentionMode, ...]:
    """One mode per block."""
    return self.module.attention_modes

  @property
  def removed_layers(self) -> tuple[int, ...]:
    """Blocks without attention parameters."""
    return surgery.removed_layers(self.attention_modes)

  @property
  def num_parameters(self) -> int:
    """Numbers in `params`."""
    return count_parameters(self.params)

  def macs(self, executed: bool = False) -> int:
    """Multiply-accumulates per image (METHOD, section 1).

    Args:
      executed: count what runs (the readout's tokens alone behind the last
        mixing of tokens) instead of the published convention.
    """
    module = self.module
    rows, columns = module.grid_size
    outputs, decoding = module.num_classes, 0
    if module.segmentation is not None:
      decoding = decoders.count_macs(
        module.segmentation, module.grid_size, module.embed_dim, outputs
      )
      outputs = 0
    return decoding + complexity.count_macs(
      modes=module.attention_modes,
      tokens=module.num_tokens,
      patches=rows * columns,
      patch_inputs=module.patch_size**2 * module.in_chans,
      embed_dim=module.embed_dim,
      mlp_ratio=module.mlp_ratio,
      # The second leading token has a head of its own.
      num_classes=outputs * (1 + module.distilled),
      read_tokens=module.read_tokens if executed else None,
      linear_inputs=module.linear_inputs,
      merged=module.merge_counts,
      leading_tokens=module.num_prefix_tokens,
      key_dim=module.embed_dim // module.num_heads if executed else None,
    )

  def replace(self, **changes: Any) -> 'Model':
    """A new Model with fields changed, `replace(params=...)`."""
    return dataclasses.replace(self, **changes)

  def __call__(self, images: Array) -> Array:
    """Normalised NHWC float32 images to logits `[batch, num_classes]`."""
    return forward(self.module, self.params, jnp.asarray(images))[0]

  def apply(
    self,
    images: Array,
    attention_modes: Sequence[str] | None = None,
    dilution_factor: Array | None = None,
  ) -> tuple[Array, Intermediates]:
    """Logits and the named intermediates of every block.

    Args:
      images: `[batch, height, width, channels]` float32, normalised.
      attention_modes: one per block, this model's by default; a block whose
        attention parameters are gone cannot be given them back.
      dilution_factor: λ `[depth]`, for blocks in mode `diluted`.

    Returns:
      Logits `[batch, num_classes]` float32 (pooled features where the model
      has no head), and a dict: `embedding`; `block00` and so on, each a dict
      of what the block has of `input`, `norm1`, `attention`,
      `after_attention`, `mlp` and `output`, `[batch, tokens, embed_dim]`; and
      `features`, behind the final norm.

    Raises:
      ModelError: modes that need parameters which are not there, or
        `diluted` without a factor.
    """
    module = self.module
    if attention_modes is not None:
      modes = surgery.check_modes(attention_modes, self.depth)
      for index, mode in enumerate(modes):
        if mode == 'linear' != self.attention_modes[index]:
          raise ModelError(
            f'block {index} has no affine map; linearize it first'
          )
      for index in self.removed_layers:
        if modes[index] not in (self.attention_modes[index], 'skip'):
          raise ModelError(
            f'block {index} is {self.attention_modes[index]!r} and has no '
            f'parameters for mode {modes[index]!r}'
          )
      module = module.clone(attention_modes=modes)
    if 'diluted' in module.attention_modes and dilution_factor is None:
      raise ModelError('blocks in mode `diluted` need a dilution_factor')
    if dilution_factor is not None:
      dilution_factor = jnp.asarray(dilution_factor, jnp.float32)
    return forward(
      module, self.params, jnp.asarray(images), dilution_factor, capture=True
    )


def create_model(
  variant: str,
  num_classes: int | None = None,
  image_size: int | Sequence[int] | None = None,
  removed_layers: Iterable[int] = (),
  seed: int = 0,
  **options: Any,
) -> Model:
  """A freshly initialised model of a known variant (METHOD, section 1).

  Args:
    variant: a name of `lambda-vit models`.
    num_classes: 0 for no head; the variant's by default.
    image_size: pixels, divisible by the patch size.
    removed_layers: blocks in mode `identity`.
    seed: of the initial parameters.
    **options: fields of the module (`models.vit.ViT`): `attention_modes`,
      `dtype`, `drop_path_rates`, `pooling` and so on.

  Returns:
    A `Model` with float32 parameters.

  Raises:
    ModelError: unknown variant, sizes or layers that do not fit.
  """
  spec = get_variant(variant)
  modes = options.pop('attention_modes', ('full',) * spec.depth)
  module = make_module(
    spec,
    num_classes=num_classes,
    image_size=image_size,
    attention_modes=surgery.modes_without(removed_layers, modes),
    **options,
  )
  return Model(
    module=module,
    params=init_params(module, seed),
    variant=spec.name,
    preprocessing=spec.preprocessing(module.image_size),
  )


def prune(
  model: Model, layers: Iterable[int], mode: AttentionMode = 'identity'
) -> Model:
  """Removes the attention of `layers`: no array of it stays in the tree.

  The blocks are then what dilution leaves at λ = 0 (METHOD, sections 2 and 5).

  Args:
    model: left as it is.
    layers: block indices; those that are gone already stay as they are.
    mode: `identity` (2x, what dilution ends in) or `absent` (x).

  Returns:
    A new `Model`; arrays that stay are shared with the old one.

  Raises:
    ModelError: an index out of range or given twice, or no attention left.
  """
  modes = surgery.modes_without(layers, model.attention_modes, mode)
  surgery.check_layers(surgery.removed_layers(modes), model.depth)
  gone = [
    index
    for index, (old, new) in enumerate(
      zip(model.attention_modes, modes, strict=True)
    )
    if old != new
  ]
  return model.replace(
    module=model.module.clone(attention_modes=modes),
    params=surgery.prune_tree(model.params, gone),
  )


def merge_tokens(model: Model, merge: Any, start: Any = 0) -> Model:
  """The model with token merging in the blocks that have attention.

  Needs no training: the parameters stay as they are (`merging`).

  Args:
    model: left as it is; merging that it has is replaced.
    merge: tokens per block, a list with one number per block, `constant:8` or
      `decreasing:8` (`merge_plan.merge_schedule`); 0 for none.
    start: the first block that merges.

  Returns:
    A new `Model` that shares the parameters.

  Raises:
    ModelError: another form, or more than the tokens allow.
  """
  module = model.module
  rows, columns = module.grid_size
  schedule = merge_plan.merge_schedule(
    merge, model.depth, rows * columns, start, model.attention_modes
  )
  return model.replace(module=module.clone(merge=schedule))


def quantize(model: Model, arithmetic: str = 'weights') -> Model:
  """The model with its matrices as 8-bit integers, one scale per channel.

  Needs no data: each matrix by itself (`lambda_vit_jax.quantization`). What
  is searched, fitted or trained has to be done before.

  Args:
    model: left as it is; may be quantised already.
    arithmetic: `weights` reads the integers as floats, `dynamic` quantises
      each token as well and multiplies integers.

  Returns:
    A new `Model`; arrays that are no matrix are shared with the old one.

  Raises:
    ModelError: an unknown arithmetic.
  """
  # Decoders have convolutions, which have no form of 8 bits here.
  kept = {
    name: leaf for name, leaf in model.params.items() if name == 'decoder'
  }
  known = quantization.QUANTIZATIONS[1:]
  if arithmetic not in known:
    raise ModelError(
      f'int8 arithmetic {arithmetic!r}; known are {" and ".join(known)}'
    )
  return model.replace(
    module=model.module.clone(quantization=arithmetic),
    params=quantization.quantize_tree(model.params) | kept,
  )


def dequantize(model: Model) -> Model:
  """The model in float32 whose matrices are what 8-bit integers left.

  Args:
    model: left as it is; quantised or not.

  Returns:
    A new `Model`: each matrix is `q · scale`, one scale per output channel
    (docs/method.md, 8-bit integers). Of a model that is not quantised all
    values are the same.
  """
  return model.replace(
    module=model.module.clone(quantization='none'),
    params=quantization.dequantize_tree(model.params),
  )


def fold(model: Model) -> Model:
  """The same function as a plain ViT, no factor 2 anywhere.

  METHOD, section 2: each `identity` block, which doubles the stream, becomes
  `absent`; what later blocks add is divided by 2^k, their norms' epsilons by
  4^k, where k counts the doublings before them.

  Args:
    model: left as it is; without blocks in mode `diluted`.

  Returns:
    A new `Model` with the same logits, exactly but for rounding.
  """
  modes = model.attention_modes
  segmentation = model.module.segmentation
  if segmentation is not None:
    segmentation = segmentation.folded(surgery.doublings(modes))
  return model.replace(
    module=model.module.clone(
      attention_modes=surgery.fold_modes(modes),
      norm_eps=surgery.fold_eps(model.module.norm_eps, modes),
      segmentation=segmentation,
    ),
    params=surgery.fold_tree(model.params, modes),
  )
