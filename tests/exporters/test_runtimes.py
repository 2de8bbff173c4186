"""Exports opened in every runtime: the model's logits, or one line."""

import sys
import types

import numpy as np
import pytest

from lambda_vit_jax.core.errors import (
  CheckpointError,
  LambdaVitError,
  UsageError,
)
from lambda_vit_jax.exporters import export, extras, runtimes
from lambda_vit_jax.models.edits import quantize
from lambda_vit_jax.models.model import create_model

INSTALLED = [name for name in runtimes.RUNTIMES if not runtimes.missing(name)]
MISSING = [name for name in runtimes.RUNTIMES if runtimes.missing(name)]


@pytest.fixture(scope='module')
def model():
  return create_model('vit_nano_patch2_8', seed=3, removed_layers=(1,))


@pytest.fixture(scope='module')
def exported(model, tmp_path_factory):
  """An export with what the installed runtimes open."""
  folder = tmp_path_factory.mktemp('runtimes') / 'export'
  formats = {runtimes.RUNTIMES[name].format for name in INSTALLED}
  export.export(model, folder, formats=formats)
  return folder


@pytest.mark.parametrize('name', INSTALLED)
def test_each_runtime_gives_the_models_logits(name, model, exported, images):
  """A program of another model, or with channels first, is off by its logits."""
  program = runtimes.open_export(name, exported)
  for count in (len(images), 1):
    np.testing.assert_allclose(
      program(images[:count]), model(images[:count]), rtol=0, atol=1e-4
    )
  # The first result is the caller's own.
  first = program(images)
  kept = np.array(first)
  program(images + 1)
  np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize('name', MISSING)
def test_a_runtime_that_is_not_installed_names_its_extra(name, exported):
  with pytest.raises(LambdaVitError, match=r"lambda_vit_jax\[\w+\]'"):
    runtimes.open_export(name, exported)


@pytest.mark.slow
def test_jax_computes_int8_as_the_quantised_model(model, exported, images):
  program = runtimes.open_export('jax', exported, 'int8')
  expected = quantize(model, 'dynamic')(images)
  np.testing.assert_array_equal(program(images), expected)
  assert np.abs(expected - model(images)).max() > 1e-4


def test_jax_prefers_the_portable_program(model, images, tmp_path):
  export.export(model, tmp_path / 'out', formats=('stablehlo',))
  found = runtimes.file_of('jax', tmp_path / 'out')
  assert found.name == 'model.stablehlo'
  program = runtimes.open_export('jax', tmp_path / 'out')
  np.testing.assert_allclose(program(images), model(images), atol=1e-4)


def test_unknown_names_and_missing_files_are_one_line(exported, monkeypatch):
  with pytest.raises(UsageError, match=r'unknown runtime .*did you mean'):
    runtimes.open_export('onnxruntim', exported)
  monkeypatch.setattr(runtimes, 'missing', lambda name: '')
  with pytest.raises(CheckpointError, match=r'no file that openvino opens'):
    runtimes.open_export('openvino', exported.parent)


@pytest.mark.parametrize('file', ['model.safetensors', 'config.json'])
def test_a_changed_file_is_refused_before_it_is_opened(
  file, model, tmp_path, monkeypatch
):
  """And so is one that is read with it, such as the weights of an IR."""
  monkeypatch.setattr(runtimes, 'missing', lambda name: '')
  export.export(model, tmp_path / 'out', formats=('safetensors',))
  with (tmp_path / 'out' / file).open('ab') as changed:
    changed.write(b' ')
  with pytest.raises(CheckpointError, match=f'{file}: not the file that was'):
    runtimes.open_export('torch', tmp_path / 'out')


def test_what_a_library_raises_is_one_line(model, tmp_path, monkeypatch):
  """A broken IR, say: OpenVINO's own error has several lines."""

  class Core:
    def read_model(self, *data):
      raise RuntimeError('Check failed\n  at frontend.cpp:12\n')

    def compile_model(self, *arguments):
      raise AssertionError

  fake = types.SimpleNamespace(Core=Core)
  monkeypatch.setitem(sys.modules, 'openvino', fake)
  monkeypatch.setattr(runtimes, 'missing', lambda name: '')
  monkeypatch.setattr(runtimes, 'check_exported', lambda *names: None)
  export.export(model, tmp_path / 'out', formats=())
  (tmp_path / 'out' / 'model.xml').write_text('<net')
  (tmp_path / 'out' / 'model.bin').write_bytes(b'')
  with pytest.raises(CheckpointError) as caught:
    runtimes.open_export('openvino', tmp_path / 'out')
  text = str(caught.value)
  assert 'openvino cannot open it (RuntimeError: Check failed at' in text
  assert '\n' not in text


def test_every_package_of_a_runtime_has_its_extra():
  packages = {p for r in runtimes.RUNTIMES.values() for p in r.packages}
  assert packages <= set(extras.EXTRAS)
