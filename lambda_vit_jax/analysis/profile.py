"""Measure entropy and cosine similarity of every layer: `entropy_profile`.

Per block: the entropy of what its attention and its MLP add to the stream, and
the cosine of the stream before and after the attention. Two compiled programs
serve all blocks: one for blocks with attention, one for those without.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis import entropy, moments
from lambda_vit_jax.analysis.blocks import measure_blocks, pooled_moments
from lambda_vit_jax.analysis.images import (
  Batches,
  ImageSet,
  Placement,
  read_images,
)
from lambda_vit_jax.analysis.moments import HostMoments, Moments
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.figures import axes_to_draw_in
from lambda_vit_jax.core.tables import Shown, Table
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name

# Keeps a zero vector's cosine finite.
_TINY = 1e-30


def _block_moments(
  taps: dict[str, Array], mask: Array, placement: Placement
) -> dict[str, Moments]:
  """Moments of what the two halves of a block add, and of the cosine."""
  measured = {'mlp': taps['mlp']} if 'mlp' in taps else {}
  if 'attention' in taps:
    measured['attention'] = taps['attention']
    measured['cosine'] = _cosine(taps['input'], taps['after_attention'])
  return {
    name: pooled_moments(features, mask, placement)
    for name, features in measured.items()
  }


def _cosine(a: Array, b: Array) -> Array:
  """`[..., embed]` to the cosine of each token, `[..., 1]` float32."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  dot = (a * b).sum(axis=-1, keepdims=True)
  squares = [(v * v).sum(axis=-1, keepdims=True) for v in (a, b)]
  return dot * jax.lax.rsqrt(squares[0] * squares[1] + _TINY)


def _moments_per_block(
  model: Model, images: ImageSet, memory_gib: float | None
) -> list[dict[str, HostMoments]]:
  found: list[dict[str, HostMoments]] = [{} for _ in range(model.depth)]
  for index, measured in measure_blocks(
    model, images, _block_moments, memory_gib
  ):
    for name, leaf in measured.items():
      host = moments.to_host(leaf)
      if old := found[index].get(name):
        host = moments.merge_host(old, host)
      found[index][name] = host
  return found


@dataclasses.dataclass(frozen=True, repr=False)
class EntropyProfile(Shown):
  """Entropy of every attention and MLP output, by depth.

  Attributes:
    attention_entropy: H of what each attention layer adds to the stream, over
      images and tokens, in nats; None where there is no attention or all its
      channels are dead.
    mlp_entropy: the same of each MLP.
    correlation: Pearson's r of the two over the blocks that have both; None
      for fewer than three such blocks.
    cosine_similarity: mean cosine of the stream x and x + attn.
    dead_channels: channels left out, per `blockNN.attention` and `.mlp`.
    num_images: number of images measured.
  """

  attention_entropy: tuple[float | None, ...]
  mlp_entropy: tuple[float | None, ...]
  correlation: float | None
  cosine_similarity: tuple[float | None, ...]
  dead_channels: dict[str, tuple[int, ...]]
  num_images: int

  def to_json(self) -> dict[str, Any]:
    """A plain dict, as in `analysis.json`."""
    return dataclasses.asdict(self)

  def table(self) -> Table:
    """One row per block."""
    columns = self.attention_entropy, self.mlp_entropy, self.cosine_similarity
    caption = ''
    if self.correlation is not None:
      caption = f'correlation of attention and MLP: {self.correlation:.3f}'
    return Table(
      title=f'entropy over depth, {self.num_images} images',
      header=('block', 'attention (nats)', 'MLP (nats)', 'cosine'),
      rows=[
        (str(index), *('' if v is None else f'{v:.4g}' for v in row))
        for index, row in enumerate(zip(*columns, strict=True))
      ],
      caption=caption,
    )

  def plot(self, ax: Any = None) -> Any:
    """Both entropies and the cosine over depth, as a matplotlib `Figure`.

    Args:
      ax: axes to draw in, which get a second scale on the right; those of a
        new figure by default.
    """
    figure, (axes, *_) = axes_to_draw_in(ax)
    blocks = range(len(self.mlp_entropy))
    axes.plot(
      blocks, np.asarray(self.attention_entropy, float), 'o-', label='attention'
    )
    axes.plot(blocks, np.asarray(self.mlp_entropy, float), 's-', label='MLP')
    axes.set_xlabel('block')
    axes.set_ylabel('entropy (nats)')
    axes.legend(frameon=False)
    cosine = axes.twinx()
    cosine.plot(
      blocks, np.asarray(self.cosine_similarity, float), '.--', color='C2'
    )
    cosine.set_ylabel('cosine of x and x + attn', color='C2')
    return figure


@check_arguments
def entropy_profile(
  model: Model,
  batches: Batches,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> EntropyProfile:
  """Entropy of every attention and MLP output.

  Args:
    model: no block in mode `diluted`.
    batches: an iterable of normalised NHWC arrays (the last may be smaller),
      or what else `images.read_images` takes.
    memory_gib: activations held at a time, per device.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    An `EntropyProfile`: entropies per block in nats, None where every channel
    is dead.

  Raises:
    DataError: no image, or images of another shape.
    ModelError: the model merges tokens.
    UsageError: a `memory_gib` that is no positive number.
  """
  images = read_images(batches, model, mesh)
  found = _moments_per_block(model, images, memory_gib)
  dead: dict[str, tuple[int, ...]] = {}
  layers: dict[str, list[float | None]] = {'attention': [], 'mlp': []}
  for name, entropies in layers.items():
    for index, measured in enumerate(found):
      if name not in measured:
        entropies.append(None)
        continue
      statistics = measured[name].pooled()
      entropies.append(
        None
        if statistics.dead.all()
        else entropy.gaussian_entropy(statistics.std, statistics.dead)
      )
      if statistics.dead.any():
        channels = np.flatnonzero(statistics.dead)
        dead[f'{block_name(index)}.{name}'] = tuple(channels.tolist())
  return EntropyProfile(
    attention_entropy=tuple(layers['attention']),
    mlp_entropy=tuple(layers['mlp']),
    correlation=_correlation(layers['attention'], layers['mlp']),
    cosine_similarity=tuple(map(_mean_cosine, found)),
    dead_channels=dead,
    num_images=images.total,
  )


def _mean_cosine(measured: dict[str, HostMoments]) -> float | None:
  if 'cosine' not in measured:
    return None
  return float(measured['cosine'].pooled().mean[0])


def _correlation(a: list[float | None], b: list[float | None]) -> float | None:
  table = np.asarray(list(zip(a, b, strict=True)), float)
  table = table[np.isfinite(table).all(axis=1)]
  if len(table) < 3 or not (table.std(axis=0) > 0.0).all():
    return None
  return float(np.asarray(np.corrcoef(table, rowvar=False))[0, 1])


def cosine_similarity(
  model: Model, images: ImageSet, memory_gib: float | None = None
) -> dict[int, float]:
  """Mean cosine of x and x + attn, per block that has attention."""
  found = _moments_per_block(model, images, memory_gib)
  cosines = enumerate(map(_mean_cosine, found))
  return {index: cosine for index, cosine in cosines if cosine is not None}
