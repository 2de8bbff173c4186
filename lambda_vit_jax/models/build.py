"""Make, initialise and run the Flax module of a variant.

`make_module`, `init_params` and `forward` are what the rest of the package uses
of Flax; `lambda_vit_jax.models.model.Model` pairs a module with parameters.
"""

import dataclasses
import functools
import logging
import numbers
import typing
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import Array, Intermediates, Params
from lambda_vit_jax.models import map_inputs
from lambda_vit_jax.models.attention import AttentionKernel
from lambda_vit_jax.models.gated_mlp import MLPS
from lambda_vit_jax.models.layers import ACTIVATIONS
from lambda_vit_jax.models.modes import DILUTION_PATHS, check_modes
from lambda_vit_jax.models.quantization import QUANTIZATIONS
from lambda_vit_jax.models.rotary import ROTARIES
from lambda_vit_jax.models.variants import Variant, get_variant
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation

_LOG = logging.getLogger(__name__)

# Of a size; checkpoints/description.py has the same.
_MOST = 1 << 16
# Sizes of a module, with the least that each can be.
_LEAST = {
  'num_classes': 0,
  'num_registers': 0,
  'mlp_alignment': 1,
  'patch_size': 1,
  'embed_dim': 1,
  'num_heads': 1,
  'in_chans': 1,
}
# Fields whose values are names.
_CHOICES: dict[str, Collection[str]] = {
  'activation': ACTIVATIONS,
  'attention_kernel': typing.get_args(AttentionKernel),
  'dilution_path': DILUTION_PATHS,
  'mlp_kind': MLPS,
  'pooling': ('token', 'avg', 'map'),
  'quantization': QUANTIZATIONS,
  # Empty for none.
  'rotary': ('', *ROTARIES),
}


def check_sizes(**sizes: Any) -> None:
  """Checks those of a module's fields that are sizes; passes over others.

  Raises:
    ModelError: out of range.
  """
  for name, size in sizes.items():
    if name not in _LEAST:
      continue
    if not (_is_whole(size) and _LEAST[name] <= size <= _MOST):
      raise ModelError(
        f'{name} {size}: must be a whole number from {_LEAST[name]} to {_MOST}'
        f'{" (0 is no head)" * (name == "num_classes")}'
      )


def _is_whole(value: Any) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def size_pair(image_size: int | Sequence[int], patch: int) -> tuple[int, int]:
  """(height, width) from an int or a pair.

  Raises:
    ModelError: not divisible by the patch size, or too large.
  """
  sides = image_size if isinstance(image_size, Iterable) else [image_size] * 2
  sides = tuple(sides)
  if len(sides) != 2 or not all(map(_is_whole, sides)):
    raise ModelError(
      f'image_size {image_size}: give one side, or two, in whole pixels'
    )
  pair = int(sides[0]), int(sides[1])
  if any(n > _MOST for n in pair):
    raise ModelError(f'image_size {image_size}: must be at most {_MOST} pixels')
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


def _check_options(
  blocks: int,
  merge: Any = (),
  depth: int | None = None,
  dtype: Any = jnp.float32,
  mlp_ratio: float = 4.0,
  **others: Any,
) -> None:
  """Raises ModelError for values of these fields that no `ViT` has."""
  if depth not in (None, blocks):
    raise ModelError(
      f'depth {depth}: the variant has {blocks} blocks; drop_blocks(model, …) '
      'leaves some out'
    )
  if not isinstance(merge, tuple) or len(merge) not in (0, blocks):
    raise ModelError(
      f'merge={merge!r}: a module takes a tuple of one number per block; '
      'merge_tokens(model, merge) takes the other forms'
    )
  if not 0 < mlp_ratio <= _MOST:
    raise ModelError(f'mlp_ratio {mlp_ratio}: must be above 0, at most {_MOST}')
  for name, value in others.items():
    if name in _CHOICES and value not in _CHOICES[name]:
      raise ModelError(
        f'{name} {value!r}; known are {", ".join(filter(None, _CHOICES[name]))}'
      )
  try:
    real = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
  except TypeError:
    real = False
  if not real:
    raise ModelError(f'dtype {dtype!r}: use float32, bfloat16 or float16')


def _check_places(module: ViT) -> None:
  """Refuses positions that a network's heads or tokens do not have."""
  head_dim = module.embed_dim // module.num_heads
  if module.rotary and head_dim % 4:
    raise ModelError(
      f'rotary positions turn pairs of channels for rows and for columns, but a '
      f'head has {head_dim}; choose num_heads so that 4 divides it'
    )
  if (module.rotary or module.relative_bias) and any(module.merge):
    raise ModelError(
      'merged tokens have no single place, which relative positions need; use '
      'merge_tokens(model, 0)'
    )
  if module.relative_bias and module.num_prefix_tokens != 1:
    raise ModelError(
      'relative_bias is for a class token and patches; the network has '
      f'{module.num_prefix_tokens} leading tokens'
    )


def _check_class_token(module: ViT) -> None:
  """Refuses a network that reads a class token but has none."""
  if module.pooling == 'token' and not module.class_token:
    raise ModelError(
      'pooling `token` needs a class token, which the network lacks; use avg '
      'or map'
    )
  if module.pooling == 'map' and not module.norm_before_pool:
    raise ModelError('pooling `map` follows the final norm; it has no fc_norm')
  map_inputs.check_class(
    map_inputs.union(module.linear_inputs), module.class_token
  )


def check_architecture(module: ViT) -> ViT:
  """Returns `module`; raises ModelError for one that cannot be computed."""
  if module.embed_dim % module.num_heads:
    raise ModelError(
      f'{module.num_heads} heads do not divide embed_dim {module.embed_dim}'
    )
  rates = module.drop_path_rates
  if len(rates) != module.depth or not all(0 <= rate < 1 for rate in rates):
    raise ModelError(
      f'drop_path_rates={rates}: give one per block, at least 0 and less than 1'
    )
  _check_places(module)
  _check_class_token(module)
  # A decoder reads patches alone, and so may a backbone.
  headless = not module.num_classes and module.pooling == 'avg'
  reads_tokens = module.segmentation is None and not headless
  whole = module.pooling == 'token' and module.norm_before_pool
  if module.distilled and reads_tokens and not whole:
    raise ModelError(
      'a distilled network reads its class and distillation tokens after the '
      'norm; it has neither average pooling nor fc_norm'
    )
  if module.computes_maps:
    inputs = map_inputs.union(module.linear_inputs)
    map_inputs.check_grid(inputs, module.grid_size)
    if any(module.merge):
      map_inputs.check_unmerged(inputs)
  return module


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
  patch_size = overrides.get('patch_size', variant.patch_size)
  check_sizes(**overrides, num_classes=num_classes or 0, in_chans=in_chans or 1)
  size = variant.image_size if image_size is None else image_size
  modes = ('full',) * depth if attention_modes is None else attention_modes
  eps = (variant.norm_eps,) * (depth + 1) if norm_eps is None else norm_eps
  if len(eps) != depth + 1:
    raise ModelError(f'{len(eps)} epsilons; {depth} blocks need {depth + 1}')
  _check_options(depth, **overrides)
  fields: dict[str, Any] = {
    'image_size': size_pair(size, patch_size),
    'num_classes': (
      variant.num_classes if num_classes is None else int(num_classes)
    ),
    'attention_modes': check_modes(modes, depth),
    'norm_eps': tuple(float(e) for e in eps),
    'pre_norm_eps': variant.norm_eps,
    'drop_path_rates': drop_path_rates(
      drop_path_rate, depth, variant.drop_path_shape
    ),
    'in_chans': variant.in_chans if in_chans is None else int(in_chans),
    'linear_inputs': map_inputs.check_all_inputs(
      overrides.pop('linear_inputs', ('token',)), depth
    ),
  }
  shared = {field.name for field in dataclasses.fields(Variant)} & set(
    ViT.__dataclass_fields__
  )
  for name in shared - set(fields) - {'name'}:
    fields[name] = getattr(variant, name)
  widths = overrides.pop('mlp_dims', ())
  module = with_mlp_dims(ViT(**(fields | overrides)), widths)
  return check_architecture(module)


def with_mlp_dims(module: ViT, widths: Sequence[int]) -> ViT:
  """The module with a hidden width per block.

  Equal networks are equal modules: widths that are all the architecture's own
  are not stored.

  Args:
    module: its own widths, if any, are replaced.
    widths: one per block, 0 for no MLP; empty for the architecture's own.

  Raises:
    ModelError: a wrong count, or a width out of range.
  """
  plain = module.clone(mlp_dims=())
  if len(widths) not in (0, module.depth):
    raise ModelError(
      f'mlp_dims has {len(widths)} widths for {module.depth} blocks; give one '
      'per block, 0 where there is no MLP'
    )
  for index, width in enumerate(widths):
    if not 0 <= width <= _MOST:
      raise ModelError(
        f'mlp_dims: block {index} has width {width}; must be from 0 (no MLP) to '
        f'{_MOST}'
      )
  widths = tuple(int(width) for width in widths)
  if widths in ((), plain.hidden_dims):
    return plain
  return module.clone(mlp_dims=widths)


def init_params(module: ViT, seed: int | Array = 0) -> Params:
  """Fresh float32 parameters, from an int seed or a typed key."""
  return _init(module, jax.random.key(seed) if isinstance(seed, int) else seed)


@functools.partial(jax.jit, static_argnames=('module',))
def _init(module: ViT, key: Any) -> Params:
  images = jnp.zeros((1, *module.image_size, module.in_chans))
  factor = jnp.ones(module.depth)
  params: Params = module.init(key, images, dilution_factor=factor)['params']
  return params


def is_head(name: str) -> bool:
  """Whether a top-level parameter belongs to a head or to the decoder."""
  return name.startswith(('head', 'decoder'))


def init_head(module: ViT, seed: int = 0) -> Params:
  """Fresh parameters of the head (or both heads), or of the decoder, alone."""

  def init() -> Params:
    params = init_params(module, seed)
    return {name: params[name] for name in params if is_head(name)}

  # Jitted as a whole, so that the other parameters are not computed.
  return jax.jit(init)()


def abstract_params(module: ViT) -> Params:
  """Shapes and dtypes of the parameters; nothing is allocated."""
  return jax.eval_shape(functools.partial(init_params, module, 0))


def apply_module(
  module: ViT, params: Params, images: Array, **options: Any
) -> tuple[Array, Intermediates]:
  """`module` on `images`, traceable; options as in `ViT.__call__`."""
  return module.apply({'params': params}, images, **options)


def for_backend(module: ViT) -> ViT:
  """`module` in the dtype that the default backend is fastest in.

  On CPUs XLA has no products of bfloat16: it converts every factor and every
  result, which takes longer than computing in float32 (docs/performance.md).
  """
  if jnp.dtype(module.dtype) != jnp.bfloat16 or jax.default_backend() != 'cpu':
    return module
  _say_float32()
  return module.clone(dtype=jnp.float32)


@functools.cache
def _say_float32() -> None:
  _LOG.warning(
    'bfloat16 is slower than float32 on this CPU: computing in float32 '
    '(docs/performance.md); parameters stay as they are'
  )


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
