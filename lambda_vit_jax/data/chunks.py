"""Join chunks of decoded 8-bit images into normalised batches.

A chunk holds 8-bit pixels and, separately, the noise that replaces erased
parts of the normalised images. That is a quarter of the bytes of float32 images
to move between processes. `join` normalises straight into the batch.
"""

from collections.abc import Sequence

import numpy as np

from lambda_vit_jax.core.images import normalise
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data.randaugment import Patch

Batch = dict[str, np.ndarray]

Chunk = dict[str, np.ndarray]
"""`pixels` uint8 `[n, height, width, channels]`, `label` int32 `[n]` or, for
masks, `[n, height, width]`; where something is erased `boxes` int32 `[k, 5]`
(row of the chunk, top, left, height, width) and `noise` float32 (their values,
one after the other); for evaluation `mask` bool `[n]`, False where a row is
padding."""


def pack_patches(patches: Sequence[Patch | None]) -> Chunk:
  """Packs the erasing noise of a chunk's images into two plain arrays."""
  boxes, noise = [], []
  for row, patch in enumerate(patches):
    if patch is not None:
      height, width, _ = patch.noise.shape
      boxes.append((row, patch.top, patch.left, height, width))
      noise.append(patch.noise.reshape(-1))
  if not boxes:
    return {}
  return {'boxes': np.array(boxes, np.int32), 'noise': np.concatenate(noise)}


def join(chunks: Sequence[Chunk], preprocessing: Preprocessing) -> Batch:
  """Joins chunks, in order, to a batch of normalised float32 images.

  Returns:
    `image` float32 `[batch, height, width, channels]`, zeros where `mask` is
    False, `label` int32 `[batch]` (or per pixel), and `mask` where the chunks
    have it.
  """
  total = sum(len(chunk['label']) for chunk in chunks)
  shape = chunks[0]['pixels'].shape[1:]
  images = np.empty((total, *shape), np.float32)
  first = 0
  for chunk in chunks:
    part = images[first : first + len(chunk['label'])]
    mask = chunk.get('mask')
    for row, pixels in enumerate(chunk['pixels']):
      if mask is None or mask[row]:
        normalise(pixels, preprocessing, part[row])
      else:
        part[row] = 0
    _erase(part, chunk)
    first += len(part)
  batch = {'image': images}
  for name in ('label', 'mask'):
    if name in chunks[0]:
      batch[name] = np.concatenate([chunk[name] for chunk in chunks])
  return batch


def _erase(images: np.ndarray, chunk: Chunk) -> None:
  """Pastes the chunk's noise over its normalised images."""
  if 'boxes' not in chunk:
    return
  channels = images.shape[-1]
  start = 0
  for row, top, left, height, width in chunk['boxes'].tolist():
    stop = start + height * width * channels
    noise = chunk['noise'][start:stop].reshape(height, width, channels)
    Patch(top, left, noise).paste(images[row])
    start = stop
