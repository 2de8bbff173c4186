"""One small network of every family: searched, pruned, exported, reloaded."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import export as jax_export

import lambda_vit_jax as lv
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.exporters.onnx import vit
from lambda_vit_jax.models.build import init_params
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.variants import VARIANTS, get_variant
from tests.support.golden import assert_close
from tests.support.onnx_numpy import run_graph

pytestmark = pytest.mark.slow

FAMILIES = (
  'vit_base_patch16_siglip_224',
  'vit_base_patch32_siglip_gap_256',
  'vit_small_plus_patch16_dinov3_qkvb',
  'eva02_base_patch14_224',
  'beit_base_patch16_224',
)

DEPTH = 5


@pytest.fixture(params=FAMILIES)
def model(request, monkeypatch):
  """A network of the family: five blocks of 24 channels, 2 × 2 patches.

  Its numbers are as large as trained ones, so that no part of it is lost in
  rounding.
  """
  variant = dataclasses.replace(
    get_variant(request.param),
    name=f'small_{request.param}',
    image_size=16,
    patch_size=8,
    embed_dim=24,
    depth=DEPTH,
    num_heads=3,
    num_classes=5,
  )
  monkeypatch.setitem(VARIANTS, variant.name, variant)
  model = lv.create_model(variant.name, seed=1)
  return model.replace(params=grown(model.params))


def grown(params):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: (np.asarray(x) + 0.1 * rng.normal(size=x.shape)).astype('f'),
    params,
  )


def images_of(model, count=4):
  shape = (count, *model.module.image_size, model.module.in_chans)
  return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def test_search_prune_export_reload(model, tmp_path):
  images = images_of(model, 128)
  selection = lv.nose(model, [images], num_layers=3)
  pruned = lv.prune(model, selection)
  assert len(pruned.removed_layers) == 3
  assert pruned.num_parameters < model.num_parameters
  expected = np.asarray(pruned(images))
  # The removed layers matter: the pruned network is another function.
  assert np.abs(expected - model(images)).max() > 1e-2

  lv.export(pruned, tmp_path, formats=('orbax', 'safetensors', 'stablehlo'))
  assert_close(lv.load_export(tmp_path)(images), expected)
  again = lv.load_pretrained(tmp_path / 'model.safetensors')
  assert again.variant == model.variant
  assert_close(again(images), expected)
  program = jax_export.deserialize(
    bytearray((tmp_path / 'model.stablehlo').read_bytes())
  )
  assert_close(program.call(images), expected)
  assert_close(run_graph(vit.build(lv.fold(pruned)), images), expected)


def test_folding_is_the_same_function(model):
  pruned = lv.prune(model, (0, 2, 3))
  images = images_of(model)
  assert_close(lv.fold(pruned)(images), pruned(images))
  _, taps = pruned.apply(images)
  _, folded = lv.fold(pruned).apply(images)
  # k = 3 doublings, which only factors in the weights can make up for.
  assert_close(8 * folded['block04']['output'], taps['block04']['output'])
  # The shortcuts of a call without intermediates change nothing.
  assert_close(pruned(images), pruned.apply(images)[0])


def test_half_dilution_is_a_mixture(model):
  images = images_of(model)
  modes = ('full', 'diluted', 'full', 'full', 'full')
  for factor, modes_of_ends in (
    (1.0, ('full',) * DEPTH),
    (0.0, ('full', 'skip', 'full', 'full', 'full')),
  ):
    factors = np.full(DEPTH, factor, np.float32)
    _, taps = model.apply(images, modes, factors)
    _, end = model.apply(images, modes_of_ends)
    scale = 2.0 - factor
    stream = end['block01']['after_attention'] * scale
    assert_close(taps['block01']['after_attention'], stream)


def test_affine_maps_take_the_place_of_attention(model):
  images = images_of(model, 32)
  linear = lv.linearize(model, [images], (1, 3), inputs=('token', 'mean'))
  assert_close(
    run_graph(vit.build(lv.fold(linear)), images[:2]), linear(images[:2])
  )


def test_a_decoder_reads_the_patches(model):
  segments = lv.with_decoder(lv.prune(model, (1,)), Decoder('linear'), 3)
  images = images_of(model)
  logits = segments(images)
  assert logits.shape == (4, 16, 16, 3)
  # No array is left of the readout that the decoder replaces.
  fresh = init_params(segments.module, 0)
  assert jax.tree.structure(fresh) == jax.tree.structure(segments.params)
  assert_close(run_graph(vit.build(lv.fold(segments)), images), logits)


# 24 channels, 4 patches of 192 numbers, MLPs of 96 (or two of 64), 5 classes:
# per block of N tokens 4·N·D² + 2·N²·D and 8·N·D².
HAND_COUNTS = {
  'vit_base_patch16_siglip_224': (
    4 * 192 * 24
    + 5 * (12 * 4 * 576 + 2 * 16 * 24)
    + (2 + 2 * 4) * 576
    + 2 * 4 * 24
    + 8 * 576
    + 5 * 24
  ),
  'vit_base_patch32_siglip_gap_256': (
    4 * 192 * 24 + 5 * (12 * 4 * 576 + 2 * 16 * 24) + 5 * 24
  ),
  # 5 leading tokens; three matrices to or from 96 channels.
  'vit_small_plus_patch16_dinov3_qkvb': (
    4 * 192 * 24 + 5 * (4 * 9 * 576 + 2 * 81 * 24 + 3 * 9 * 24 * 96) + 5 * 24
  ),
  # A class token; the bias of scores is added.
  'beit_base_patch16_224': (
    4 * 192 * 24 + 5 * (12 * 5 * 576 + 2 * 25 * 24) + 5 * 24
  ),
  # A class token; 64 channels.
  'eva02_base_patch14_224': (
    4 * 192 * 24 + 5 * (4 * 5 * 576 + 2 * 25 * 24 + 3 * 5 * 24 * 64) + 5 * 24
  ),
}


def test_multiply_accumulates_by_hand(model):
  family = model.variant.removeprefix('small_')
  assert model.macs() == HAND_COUNTS[family]


def test_only_networks_with_fixed_places_merge_tokens(model):
  images = images_of(model)
  if model.module.rotary or model.module.relative_bias:
    with pytest.raises(ModelError, match='no single place'):
      lv.merge_tokens(model, 1)
    return
  merged = lv.merge_tokens(model, 1)
  assert merged.module.merge_counts != (0,) * DEPTH
  assert_close(run_graph(vit.build(merged), images), merged(images))
