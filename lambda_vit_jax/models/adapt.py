"""Replace the head by a segmentation decoder or remove it; change input size."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models import map_inputs, quantization, resampling
from lambda_vit_jax.models.build import (
  check_architecture,
  check_sizes,
  init_head,
  is_head,
  size_pair,
)
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.relative_bias import TABLE, resize_table


@check_arguments
def with_decoder(
  model: Model, decoder: Decoder, num_classes: int, seed: int = 0
) -> Model:
  """The model for segmentation: a new decoder instead of the head.

  Args:
    model: dense or pruned; its head or decoder is left out.
    decoder: description of the decoder.
    num_classes: classes of a pixel.
    seed: of the decoder's initial parameters.

  Returns:
    A model whose call returns `[batch, height, width, num_classes]`.

  Raises:
    ModelError: the decoder reads blocks that the model lacks, or no class.
  """
  if num_classes < 1:
    raise ModelError(f'num_classes {num_classes}: segmentation needs a class')
  check_sizes(num_classes=num_classes)
  decoder.check_depth(model.depth)
  plain = backbone(model)
  # A decoder reads the patches; attention pooling goes with the head.
  attends = model.module.pooling == 'map'
  module = plain.module.clone(
    num_classes=num_classes,
    segmentation=decoder,
    pooling='avg' if attends else model.module.pooling,
  )
  kept = {name: x for name, x in plain.params.items() if name != 'attn_pool'}
  return plain.replace(module=module, params=kept | init_head(module, seed))


@check_arguments
def backbone(model: Model) -> Model:
  """The model without head or decoder.

  A call returns the pooled features. Of a model that segments that is their mean
  over the patches, which searches then measure.
  """
  params = _without_head(model.params)
  module = model.module.clone(num_classes=0, segmentation=None)
  if model.module.segmentation is not None:
    module = module.clone(pooling='avg')
  return model.replace(module=module, params=params, class_names=())


def _without_head(params: Params) -> Params:
  return {name: params[name] for name in params if not is_head(name)}


def with_image_size(model: Model, image_size: int | Sequence[int]) -> Model:
  """`model` for images of another size, with its position embedding resized.

  Raises:
    ModelError: the size is not divisible by the patch size, or the model has
      maps that were fitted for another size.
  """
  old = model.module
  size = size_pair(image_size, old.patch_size)
  if size == old.image_size:
    return model
  if old.computes_maps:
    inputs = map_inputs.union(old.linear_inputs)
    map_inputs.check_size(inputs, old.image_size, size)
    grid = size[0] // old.patch_size, size[1] // old.patch_size
    map_inputs.check_grid(inputs, grid)
  module = old.clone(image_size=size)
  params = dict(model.params)
  if old.absolute_positions:
    prefix = old.num_prefix_tokens if old.position_on_class else 0
    resized = resampling.resize_positions(
      params['pos_embed'], old.grid_size, module.grid_size, prefix
    )
    params['pos_embed'] = jnp.asarray(resized)
  for index in range(old.depth):
    block = params[block_name(index)]
    if TABLE not in block.get('attn', {}):
      continue
    table = resize_table(block['attn'][TABLE], old.grid_size, module.grid_size)
    attention = block['attn'] | {TABLE: jnp.asarray(table)}
    params[block_name(index)] = block | {'attn': attention}
  return model.replace(
    module=module,
    params=params,
    preprocessing=dataclasses.replace(model.preprocessing, image_size=size),
  )


def with_num_classes(model: Model, num_classes: int, seed: int = 0) -> Model:
  """`model` with a new head for `num_classes`, or without a head for 0.

  A model that segments gets a new decoder of the same kind, or none.

  Raises:
    ModelError: a negative number, or too many; a head for a distilled network
      whose patches are averaged.
  """
  check_sizes(num_classes=num_classes)
  decoder = model.module.segmentation
  if decoder is not None:
    plain = backbone(model)
    if not num_classes:
      return plain
    return with_decoder(plain, decoder, num_classes, seed)
  module = check_architecture(model.module.clone(num_classes=num_classes))
  params = _without_head(model.params)
  if num_classes:
    head = init_head(module.clone(quantization='none'), seed)
    quantized = module.quantization != 'none'
    params |= quantization.quantize_tree(head) if quantized else head
  return model.replace(module=module, params=params, class_names=())
