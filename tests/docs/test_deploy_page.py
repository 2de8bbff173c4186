"""docs/deploy.md's lines run an export, where the runtime is installed."""

import json
import shutil

import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.exporters import export, runtimes
from lambda_vit_jax.models.model import create_model
from tests.support import doc_pages

PAGE = doc_pages.ROOT / 'docs' / 'deploy.md'


def recipe(name):
  return pytest.param(
    name,
    marks=pytest.mark.skipif(
      bool(runtimes.missing(name)),
      reason=runtimes.missing(name) or 'installed',
    ),
  )


@pytest.mark.parametrize(
  'name', [recipe(name) for name in ('onnxruntime', 'openvino', 'torch')]
)
def test_the_lines_give_the_models_logits(name, tmp_path, monkeypatch, rng):
  monkeypatch.chdir(tmp_path)
  # PyTorch and OpenVINO compute in bfloat16 there.
  allowed = {'onnxruntime': 1e-4, 'openvino': 0.05, 'torch': 0.05}[name]
  model = create_model('vit_nano_patch2_8', removed_layers=(1,))
  export.export(model, 'export', formats=(runtimes.RUNTIMES[name].format,))
  (body,) = [
    body
    for body in doc_pages.fences(PAGE, 'python')
    if f'import {name}\n' in body
  ]
  images = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)
  scope = {'images': images}
  exec(body, scope)
  logits = scope['logits']
  logits = logits.float().numpy() if name == 'torch' else logits
  expected = np.asarray(model(images))
  largest = max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(logits, expected, rtol=0, atol=allowed * largest)


needs_onnxruntime = pytest.mark.skipif(
  bool(runtimes.missing('onnxruntime')),
  reason=runtimes.missing('onnxruntime') or 'installed',
)


@pytest.mark.slow
@pytest.mark.parity
@needs_onnxruntime
def test_the_commands_run(tmp_path, monkeypatch):
  """Of the parity tests, since it wants extras and takes some minutes."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').symlink_to(doc_pages.ROOT / 'configs')
  lines = [
    [word + ':runlocal' * word.startswith('--config=') for word in found.words]
    for found in doc_pages.commands()
    if found.where.startswith('docs/deploy.md')
    and found.words[0] == 'lambda-vit'
  ]
  assert [line[1] for line in lines] == ['run', 'benchmark', 'run']
  for line in lines:
    if runtimes.missing('openvino'):
      line = [word.replace(", 'openvino'", ',') for word in line]
    assert main.main([*line[1:], '--quiet']) == 0
  runs = tmp_path / 'runs'
  assert (runs / 'deploy' / 'export' / 'model.onnx').exists()
  shutil.copytree(runs / 'deploy', runs / 'digits')
  (body,) = [
    body for body in doc_pages.fences(PAGE, 'python') if 'load_export' in body
  ]
  if runtimes.missing('openvino'):
    body = body.replace(", 'openvino'", ',')
  exec(body, {'lv': lv})
  assert (tmp_path / 'export' / 'model.onnx').exists()
  fields = json.loads((runs / 'digits_int8/export/model.json').read_text())
  assert fields['accuracy']['onnx']['num_images'] > 0


@needs_onnxruntime
def test_the_lines_calibrate_a_model(tmp_path, monkeypatch, rng):
  monkeypatch.chdir(tmp_path)
  (body,) = [
    body for body in doc_pages.fences(PAGE, 'python') if 'static' in body
  ]
  model = create_model('vit_nano_patch2_8')
  images = rng.normal(size=(64, 8, 8, 1)).astype(np.float32)
  labels = np.asarray(model(images)).argmax(axis=1)
  # Of 32 images, one that changes its class is more than 0.005.
  body = body.replace("'static'", "'static:0.2'")
  exec(body, {'lv': lv, 'model': model, 'images': images, 'labels': labels})
  fields = json.loads((tmp_path / 'export_int8' / 'model.json').read_text())
  assert fields['accuracy']['onnx']['num_images'] == 32


def test_every_runtime_of_ours_has_a_recipe():
  text = PAGE.read_text()
  for name in ('onnxruntime', 'openvino', 'torch'):
    assert f'import {name}\n' in text
