"""`Model`: a frozen pair of a Linen module and its parameters."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.typing import (
  Array,
  AttentionMode,
  Intermediates,
  Params,
)
from lambda_vit_jax.models import macs as macs_lib
from lambda_vit_jax.models import modes as modes_lib
from lambda_vit_jax.models.build import forward, init_params, make_module
from lambda_vit_jax.models.macs import count_parameters
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.models.vit import ViT


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
    return modes_lib.removed_layers(self.attention_modes)

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
    return macs_lib.count_macs(self.module, executed)

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
      modes = modes_lib.check_modes(attention_modes, self.depth)
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
    attention_modes=modes_lib.modes_without(removed_layers, modes),
    **options,
  )
  return Model(
    module=module,
    params=init_params(module, seed),
    variant=spec.name,
    preprocessing=spec.preprocessing(module.image_size),
  )
