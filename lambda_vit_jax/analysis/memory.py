"""Choose the size of a micro-batch from the available memory."""

import os

import jax
import jax.numpy as jnp

from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.models.vit import ViT

GIB = 2**30

# A micro-batch of this many tokens fits in a CPU's cache, and its matrix
# products are large enough to be fast.
_CPU_TOKENS = 4096

# Shares of the device's memory that a search takes if no budget is given.
_CPU_SHARE = 0.25
_ACCELERATOR_SHARE = 0.7

_LARGEST_MICRO_BATCH = 1024


def bytes_per_image(module: ViT) -> int:
  """Estimates the memory of one image of a micro-batch during a search round.

  The streams of all trials (depth + 1, and the one being computed), and the
  working arrays of one block: q, k, v and their transposed copies, scores in
  float32 and weights, and the hidden layer twice.
  """
  size = jnp.dtype(module.dtype).itemsize
  tokens, width = module.num_tokens, module.embed_dim
  height, columns = module.image_size
  stream = tokens * width * size
  attention = 8 * stream + module.num_heads * tokens**2 * (4 + size)
  # Gated MLPs have a gate besides the values and their product.
  layers = 2 if module.mlp_kind == 'plain' else 3
  widest = max(module.hidden_dims, default=0)
  mlp = 2 * stream + layers * widest * tokens * size
  image = 2 * 4 * height * columns * module.in_chans
  return (module.depth + 2) * stream + max(attention, mlp) + image


def micro_batch_size(
  module: ViT, images: ImageSet, memory_gib: float | None
) -> int:
  """Images per call over all devices: a power of two times the devices.

  Raises:
    UsageError: the budget is not positive or does not hold one image.
  """
  devices = images.placement.mesh.size
  try:
    budget = default_gib() if memory_gib is None else float(memory_gib)
  except (TypeError, ValueError) as error:
    raise UsageError(
      f'memory_gib={memory_gib!r}: a number of GiB, or empty'
    ) from error
  each = bytes_per_image(module)
  fitting = int(budget * GIB / each) if budget > 0 else 0
  if not fitting:
    raise UsageError(
      f'memory_gib={memory_gib:g} does not hold one image, which takes '
      f'{each / GIB:.2g} GiB; raise the budget'
    )
  # No larger than the images need, nor than the device can use well.
  needed = -(-int(images.counts().max()) * jax.process_count() // devices)
  useful = _LARGEST_MICRO_BATCH
  if jax.default_backend() == 'cpu':
    useful = max(8, _CPU_TOKENS // module.num_tokens)
  limit = min(fitting, useful)
  power = 1 << (limit.bit_length() - 1)
  return devices * min(power, 1 << max(needed - 1, 0).bit_length())


def default_gib() -> float:
  """The memory budget of a search if none is given, in GiB."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    free = stats['bytes_limit'] - stats.get('bytes_in_use', 0)
    return _ACCELERATOR_SHARE * free / GIB
  try:
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  except (AttributeError, OSError, ValueError):  # not on every system
    return 1.0
  return max(_CPU_SHARE * free / GIB, 0.25)
