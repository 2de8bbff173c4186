"""Measure the spatial frequencies in every block's output: `spectrum`.

The paper claims that models without some attention layers keep more of the
high frequencies. Token grids may be square or oblong.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis.blocks import measure_blocks
from lambda_vit_jax.analysis.images import Batches, Placement, read_images
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.figures import axes_to_draw_in
from lambda_vit_jax.core.tables import Shown, Table
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model

# Log amplitude of a coefficient that is exactly zero.
_SMALLEST = 1e-30


def log_amplitude(grids: Array) -> Array:
  """`[..., rows, columns, channels]` to `log |FFT2|`, traceable.

  Returns:
    `[..., rows, columns]` float32, averaged over the channels; the zero
    frequency is at [0, 0].
  """
  coefficients = jnp.fft.fft2(grids.astype(jnp.float32), axes=(-3, -2))
  return jnp.log(jnp.maximum(jnp.abs(coefficients), _SMALLEST)).mean(axis=-1)


def radial_bins(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
  """Assigns every pixel of a two-dimensional FFT to a frequency bin.

  The frequency of a pixel is the root mean square of those along the axes
  (an axis of one pixel does not count), so that the corner, where both are
  highest, has frequency π.

  Returns:
    Frequencies `[bins]` in radians per token, ascending from 0, at most π;
    and the bin of each pixel, `[rows, columns]` int. No bin is empty.
  """
  axes = max(1, (rows > 1) + (columns > 1))
  along = [2.0 * math.pi * np.fft.fftfreq(size) for size in (rows, columns)]
  square = along[0][:, None] ** 2 + along[1][None, :] ** 2
  radius = np.sqrt(square / axes)
  steps = max(max(rows, columns) // 2, 1)
  nearest = np.rint(radius / math.pi * steps).astype(int)
  used, index = np.unique(nearest, return_inverse=True)
  return used * math.pi / steps, index.reshape(rows, columns)


def radial_profile(amplitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean of the log amplitude per bin, minus the one at frequency 0.

  Args:
    amplitude: log amplitude, `[..., rows, columns]`.

  Returns:
    Frequencies `[bins]` and `[..., bins]`, whose first entry is 0.
  """
  frequencies, index = radial_bins(*amplitude.shape[-2:])
  member = np.eye(len(frequencies))[index.reshape(-1)]
  flat = amplitude.reshape(*amplitude.shape[:-2], -1)
  profile = flat @ (member / member.sum(axis=0))
  return frequencies, profile - profile[..., :1]


@dataclasses.dataclass(frozen=True)
class _SumOfAmplitudes:
  """The log amplitude of a block's output, summed over the images."""

  grid: tuple[int, int]
  prefix: int

  def __call__(
    self, taps: dict[str, Array], mask: Array, placement: Placement
  ) -> Array:
    del placement
    x = taps['output']
    patches = x[:, self.prefix :].reshape(len(x), *self.grid, x.shape[-1])
    amplitude = log_amplitude(patches)
    return jnp.where(mask[:, None, None], amplitude, 0.0).sum(axis=0)


@dataclasses.dataclass(frozen=True, repr=False)
class Spectrum(Shown):
  """Relative log amplitude of each block's output.

  Attributes:
    frequencies: of the bins, radians per token, from 0 to at most π.
    relative_log_amplitude: per block and bin, the mean of log |FFT2| over
      images, channels and the bin's pixels, minus the one at frequency 0.
    grid_size: rows and columns of the token grid.
    num_images: number of images measured.
  """

  frequencies: tuple[float, ...]
  relative_log_amplitude: tuple[tuple[float, ...], ...]
  grid_size: tuple[int, int]
  num_images: int

  @property
  def high_frequency(self) -> tuple[float, ...]:
    """Relative log amplitude of the highest bin, per block."""
    return tuple(row[-1] for row in self.relative_log_amplitude)

  def to_json(self) -> dict[str, Any]:
    """A plain dict, as in `analysis.json`."""
    return dataclasses.asdict(self)

  def table(self) -> Table:
    """One row per block."""
    rows, columns = self.grid_size
    return Table(
      title='log amplitude relative to frequency 0',
      header=('block', *(f'{f / math.pi:.2f}π' for f in self.frequencies)),
      rows=[
        (str(index), *(f'{value:.2f}' for value in row))
        for index, row in enumerate(self.relative_log_amplitude)
      ],
      caption=f'{self.num_images} images, grid {rows} × {columns}',
    )

  def plot(
    self,
    *others: 'Spectrum',
    labels: Sequence[str] = ('dense', 'pruned'),
    ax: Any = None,
  ) -> Any:
    """A `Figure`: the last block's spectrum, and the highest frequency by depth.

    Args:
      *others: spectra to draw beside this one.
      labels: of this one and the others.
      ax: two axes to draw in, or one for the last block's spectrum alone;
        those of a new figure by default.

    Raises:
      UsageError: another spectrum that is none, or no axes.
    """
    for other in others:
      if not isinstance(other, Spectrum):
        raise UsageError(
          f'plot(<{type(other).__name__}>): other spectra come first; give '
          'axes as plot(ax=…)'
        )
    figure, (last, *depth) = axes_to_draw_in(ax, columns=2, size=(8.0, 3.4))
    for index, spectrum_ in enumerate((self, *others)):
      label = labels[index] if index < len(labels) else str(index)
      last.plot(
        np.asarray(spectrum_.frequencies) / math.pi,
        spectrum_.relative_log_amplitude[-1],
        marker='.',
        label=label,
      )
      for axes in depth[:1]:
        axes.plot(spectrum_.high_frequency, marker='.', label=label)
    last.set_xlabel('frequency (π per token)')
    last.set_ylabel('relative log amplitude, last block')
    for axes in depth[:1]:
      axes.set_xlabel('block')
      axes.set_ylabel('at the highest frequency')
    if others:
      last.legend(frameon=False)
    return figure


@check_arguments
def spectrum(
  model: Model,
  batches: Batches,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> Spectrum:
  """Spectrum of the patch tokens after every block.

  The relative log amplitude of their two-dimensional Fourier transform, as in
  the paper's analysis of pruned models.

  Args:
    model: no block in mode `diluted`.
    batches: an iterable of normalised NHWC arrays, or what else
      `images.read_images` takes.
    memory_gib: activations held at a time, per device.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    A `Spectrum`, per block; it shows itself as a table and has `plot()`.

  Raises:
    DataError: no image, or images of another shape.
    ModelError: the model merges tokens.
    UsageError: a `memory_gib` that is no positive number.
  """
  module = model.module
  images = read_images(batches, model, mesh)
  measure = _SumOfAmplitudes(module.grid_size, module.num_prefix_tokens)
  total = np.zeros((model.depth, *module.grid_size))
  for index, amplitude in measure_blocks(model, images, measure, memory_gib):
    total[index] += np.asarray(amplitude, np.float64)
  frequencies, profile = radial_profile(total / images.total)
  return Spectrum(
    frequencies=tuple(frequencies.tolist()),
    relative_log_amplitude=tuple(tuple(row) for row in profile.tolist()),
    grid_size=module.grid_size,
    num_images=images.total,
  )
