"""From a network that classifies to one that segments, and back to neither."""

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.models.build import init_head, is_head
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.model import Model


def with_decoder(
  model: Model, decoder: Decoder, num_classes: int, seed: int = 0
) -> Model:
  """The network with a fresh decoder in place of its head: it segments.

  Args:
    model: dense or pruned; its head, or the decoder it has, is left out.
    decoder: what decodes.
    num_classes: of a pixel.
    seed: of the decoder's parameters.

  Returns:
    A model whose call returns `[batch, height, width, num_classes]`.

  Raises:
    ModelError: blocks that the network lacks, or no class.
  """
  if num_classes < 1:
    raise ModelError(f'num_classes {num_classes}: segmentation needs a class')
  decoder.check_depth(model.depth)
  plain = backbone(model)
  module = plain.module.clone(
    num_classes=num_classes,
    segmentation=decoder,
    pooling=model.module.pooling,
  )
  return plain.replace(
    module=module, params=plain.params | init_head(module, seed)
  )


def backbone(model: Model) -> Model:
  """The network without head or decoder.

  A call returns the mean over the image of its final features, which is what
  searches look at where a decoder reads the patches alone.
  """
  params = {
    name: value for name, value in model.params.items() if not is_head(name)
  }
  module = model.module.clone(num_classes=0, segmentation=None)
  if model.module.segmentation is not None:
    module = module.clone(pooling='avg')
  return model.replace(module=module, params=params, class_names=())
