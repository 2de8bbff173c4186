"""The two-dimensional spectrum: closed forms on waves, bins on any grid."""

import dataclasses
import json
import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from lambda_vit_jax.analysis.spectrum import (
  log_amplitude,
  radial_bins,
  radial_profile,
  spectrum,
)
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

_log_amplitude = jax.jit(log_amplitude)


@hypothesis.given(st.integers(1, 20), st.integers(1, 20))
def test_every_pixel_is_in_a_bin_and_no_bin_is_empty(rows, columns):
  frequencies, index = radial_bins(rows, columns)
  assert index.shape == (rows, columns)
  assert set(index.reshape(-1)) == set(range(len(frequencies)))
  assert frequencies[0] == 0.0
  assert index[0, 0] == 0
  assert (np.diff(frequencies) > 0.0).all()
  assert frequencies[-1] <= math.pi
  if rows % 2 == 0 and columns % 2 == 0:
    assert frequencies[-1] == math.pi


@hypothesis.given(st.integers(2, 12), st.integers(2, 12))
def test_turning_a_grid_turns_its_bins(rows, columns):
  np.testing.assert_array_equal(
    radial_bins(rows, columns)[1], radial_bins(columns, rows)[1].T
  )


@pytest.mark.parametrize('grid', [(4, 4), (2, 6), (1, 8), (5, 3)])
def test_white_noise_is_flat_and_scale_does_not_count(rng, grid):
  noise = rng.normal(size=(4000, *grid, 2)).astype(np.float32)
  _, profile = radial_profile(np.asarray(_log_amplitude(noise)).mean(axis=0))
  # E log|z| of a complex coefficient is 0.29 above a real one (the pixels
  # that are their own mirror, frequency 0 among them): (log 2)/2 + Euler's
  # constant's share; never more than that, but for the mean's own noise.
  assert np.abs(profile).max() < 0.29 + 0.33 + 0.05
  _, doubled = radial_profile(
    np.asarray(_log_amplitude(2.0 * noise)).mean(axis=0)
  )
  np.testing.assert_allclose(doubled, profile, atol=1e-4)


def test_a_wave_is_at_its_own_frequency():
  rows, columns = np.indices((8, 8))
  wave = np.cos(math.pi * (rows + columns)) + 1e-3
  amplitude = np.asarray(_log_amplitude(wave[..., None].astype(np.float32)))
  frequencies, index = radial_bins(8, 8)
  peak = np.unravel_index(amplitude.argmax(), (8, 8))
  assert frequencies[index[peak]] == math.pi
  # Sums over 64 pixels: of the wave 64, of the mean 0.064 (to four digits,
  # which is what float32 leaves of 1.001).
  assert amplitude[peak] == pytest.approx(math.log(64.0), abs=1e-3)
  assert amplitude[0, 0] == pytest.approx(math.log(0.064), abs=1e-3)


def test_amplitude_is_numpys(rng):
  grids = rng.normal(size=(3, 4, 6, 5)).astype(np.float32)
  exact = np.log(np.abs(np.fft.fft2(grids.astype(np.float64), axes=(1, 2))))
  np.testing.assert_allclose(
    _log_amplitude(grids), exact.mean(axis=-1), atol=1e-4
  )


@pytest.mark.parametrize(
  'image_size, devices', [((8, 8), 1), ((8, 8), 8), ((4, 12), 1)]
)
def test_spectrum_of_a_model(tiny_variant, image_size, devices):
  model = make_model(tiny_variant, image_size=image_size)
  images = make_images(20, shape=(*image_size, 1))
  found = spectrum(model, batches_of(images, 7), mesh=mesh_of(devices))
  grid = model.module.grid_size
  assert found.grid_size == grid
  taps = model.apply(images)[1]
  for index, row in enumerate(found.relative_log_amplitude):
    stream = np.asarray(taps[f'block{index:02d}']['output'], np.float64)[:, 1:]
    coefficients = np.fft.fft2(stream.reshape(20, *grid, 24), axes=(1, 2))
    exact = np.log(np.abs(coefficients)).mean(axis=(0, -1))
    # Logarithms of small coefficients magnify float32's rounding.
    np.testing.assert_allclose(row, radial_profile(exact)[1], atol=1e-3)
  assert found.num_images == 20


def test_it_shows_itself(tiny_variant):
  model = make_model(tiny_variant)
  found = spectrum(model, [make_images(20)])
  assert set(json.loads(json.dumps(found.to_json()))) == {
    'frequencies',
    'relative_log_amplitude',
    'grid_size',
    'num_images',
  }
  assert found.__rich__().row_count == 3
  assert 'grid 4 × 4' in found._repr_html_()
  lines = repr(found).splitlines()
  assert lines[0] == 'log amplitude relative to frequency 0'
  assert len(lines) == 6
  deep = dataclasses.replace(
    found, relative_log_amplitude=found.relative_log_amplitude * 20
  )
  assert len(repr(deep).splitlines()) <= 20
  axes = found.plot(found).axes[0]
  assert [text.get_text() for text in axes.get_legend().get_texts()] == [
    'dense',
    'pruned',
  ]
