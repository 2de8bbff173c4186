"""`push_to_hub`: the folder, its card and what happens without a network."""

import logging
import sys
import types

import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import write_json
from lambda_vit_jax.exporters import publish
from lambda_vit_jax.exporters.model_card import make_card
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.models.model import create_model

FACTS = {
  'selection': {
    'criterion': 'transfer_entropy',
    'target': 'logits',
    'num_samples': 256,
    'order': [2, 0],
  },
  'evaluation': {
    'dense': {'top1': 0.9123, 'num_images': 360},
    'pruned': {'top1': 0.9, 'num_images': 360},
  },
  'benchmark': {
    'device': 'a CPU',
    'dtype': 'float32',
    'batch_size': 16,
    'speedup': 1.25,
    'dense': {'images_per_second': {'median': 100.0}},
    'pruned': {'images_per_second': {'median': 125.0}},
  },
  'config': {'data': {'source': 'image_folder:/home/somebody/flowers'}},
}


@pytest.fixture(scope='module')
def model():
  return prune(create_model('vit_nano_patch2_8', seed=1), (0, 2))


@pytest.fixture
def hub(monkeypatch):
  """`huggingface_hub` that notes what is uploaded, or fails."""
  calls = []

  class Api:
    def create_repo(self, repository, **_):
      if module.error:
        raise module.error
      calls.append(repository)

    def upload_folder(self, repo_id, folder_path):
      calls.append((repo_id, folder_path))

  module = types.SimpleNamespace(HfApi=Api, calls=calls, error=None)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
  return module


def test_a_folder_with_its_card_is_uploaded(model, hub, tmp_path):
  for name, content in FACTS.items():
    write_json(tmp_path / f'{name}.json', content)
  found = lv.push_to_hub(
    model,
    'somebody/tiny',
    tmp_path / 'out',
    run=tmp_path,
    formats='safetensors',
    licence='apache-2.0',
  )
  assert found.url == 'https://huggingface.co/somebody/tiny'
  assert hub.calls == [
    'somebody/tiny',
    ('somebody/tiny', str(tmp_path / 'out')),
  ]
  card = (tmp_path / 'out' / 'README.md').read_text()
  for words in (
    'blocks 0, 2 (2 of 3)',
    '`transfer_entropy` of the logits on 256 images',
    'in the order 2, 0',
    '| dense | 91.23% | 360 |',
    '| pruned | 125.0 |',
    'a CPU in float32 with 16 images per call: 1.25 times',
    '`image_folder:flowers`',
    'license: "apache-2.0"',
    "lv.load_pretrained('hf-hub:somebody/tiny')",
    'timm.create_model(',
  ):
    assert words in card
  # Neither paths of this machine nor formats that are not there.
  assert '/home' not in card
  assert 'onnxruntime' not in card
  images = np.ones((1, 8, 8, 1), np.float32)
  again = load_pretrained(tmp_path / 'out')
  np.testing.assert_array_equal(again(images), model(images))
  # As the hub's cache holds it: config.json and the weights.
  (tmp_path / 'cache').mkdir()
  for name in ('config.json', 'model.safetensors'):
    (tmp_path / 'out' / name).rename(tmp_path / 'cache' / name)
  again = load_pretrained(tmp_path / 'cache')
  # The file is folded: the same function, rounded otherwise.
  np.testing.assert_allclose(again(images), model(images), atol=1e-5)


@pytest.mark.parametrize('missing', [True, False], ids=['package', 'network'])
def test_without_network_the_folder_is_written(
  model, hub, missing, tmp_path, monkeypatch, caplog
):
  hub.error = ConnectionError('no route')
  if missing:
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with caplog.at_level(logging.WARNING):
    found = lv.push_to_hub(model, 'a/b', tmp_path / 'b', formats='orbax')
  assert not found.url
  assert 'a/b' in found.reason
  assert (tmp_path / 'b' / 'README.md').exists()
  (record,) = caplog.records
  assert f'hf upload a/b {tmp_path / "b"}' in record.getMessage()


@pytest.mark.parametrize('name', ['b', 'a/b/c', '../b', 'a/ b', ''])
def test_names_are_checked_before_anything_is_written(name, model, tmp_path):
  with pytest.raises(CheckpointError, match='write OWNER/NAME'):
    lv.push_to_hub(model, name, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_card_without_a_run_claims_nothing(model):
  card = make_card(model, 'a/b')
  for heading in ('Accuracy', 'Speed', 'Data', 'chosen'):
    assert heading not in card
  assert 'None is stated here.' in card


def test_a_run_without_results_is_refused_before_the_export(model, tmp_path):
  with pytest.raises(CheckpointError, match='holds no results of a run'):
    lv.push_to_hub(model, 'a/b', tmp_path / 'out', run=tmp_path / 'mistyped')
  assert not (tmp_path / 'out').exists()


def test_damaged_results_are_named(tmp_path):
  (tmp_path / 'selection.json').write_text('[')
  with pytest.raises(CheckpointError, match=r'selection\.json'):
    publish.run_facts(tmp_path)
