"""Exported ONNX files in onnxruntime (extra `[parity]`)."""

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.exporters import export
from lambda_vit_jax.models import decoders
from lambda_vit_jax.models.model import create_model

pytestmark = pytest.mark.parity

NAMES = (
  'vit_mini_patch2_8',
  'deit_tiny_distilled_patch16_224',
  'deit3_small_patch16_224',
  'vit_small_patch14_reg4_dinov2',
)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', 'int8'])
@pytest.mark.parametrize('name', NAMES)
def test_onnxruntime_gives_the_models_logits(name, dtype, tmp_path):
  options = {} if 'mini' in name else {'image_size': 112}
  model = create_model(name, removed_layers=(1, 3), **options)
  report = export.export(
    model, tmp_path / 'out', formats=('onnx',), dtype=dtype
  )
  path = tmp_path / 'out' / 'model.onnx'
  onnx.checker.check_model(str(path), full_check=True)
  session = onnxruntime.InferenceSession(
    path.read_bytes(), providers=['CPUExecutionProvider']
  )
  module = model.module
  rng = np.random.default_rng(1)
  for batch in (1, 3):
    shape = (batch, *module.image_size, module.in_chans)
    images = rng.normal(size=shape).astype(np.float32)
    (found,) = session.run(['logits'], {'images': images})
    with jax.default_matmul_precision('highest'):
      expected = np.asarray(model(images))
    # Half precision only rounds the weights; the export measured the resulting
    # difference on other images.
    bound = 1e-4
    if dtype == 'int8':
      # The export refuses integer arithmetic that differs by more than 1e-4.
      bound += 3 * report['differences']['quantization']
      assert path.stat().st_size < 1.2 * model.num_parameters + 100_000
    elif dtype != 'float32':
      bound += 3 * report['differences']['onnx']
      assert path.stat().st_size < 2.2 * model.num_parameters + 100_000
    np.testing.assert_allclose(
      found, expected, rtol=0, atol=bound * max(1, np.abs(expected).max())
    )


@pytest.mark.parametrize('merge', [0, 'decreasing:10'], ids=str)
@pytest.mark.parametrize('kind', decoders.KINDS)
def test_onnxruntime_segments_as_the_model(kind, merge, tmp_path):
  blocks = decoders.spread_blocks(12) if kind == 'upernet' else ()
  model = create_model(
    'vit_tiny_patch16_224', image_size=(192, 160), removed_layers=(1, 3)
  )
  decoder = decoders.Decoder(kind, blocks, channels=32)
  model = lv.merge_tokens(lv.with_decoder(model, decoder, 7), merge)
  export.export(model, tmp_path / 'out', formats=('onnx',))
  path = tmp_path / 'out' / 'model.onnx'
  onnx.checker.check_model(str(path), full_check=True)
  session = onnxruntime.InferenceSession(
    path.read_bytes(), providers=['CPUExecutionProvider']
  )
  rng = np.random.default_rng(1)
  for batch in (1, 3):
    images = rng.normal(size=(batch, 192, 160, 3)).astype(np.float32)
    (found,) = session.run(['logits'], {'images': images})
    with jax.default_matmul_precision('highest'):
      expected = np.asarray(model(images))
    assert found.shape == (batch, 192, 160, 7)
    difference = np.abs(found - expected).max(axis=(1, 2, 3))
    # Rounding can decide a near tie between two matches the other way, but not
    # in half of the images.
    worst = np.median(difference) if merge else difference.max()
    assert worst <= 1e-4 * max(1, np.abs(expected).max())
