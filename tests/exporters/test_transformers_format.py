"""What is written under transformers' names is the model, zeros in its place.

tests/parity/test_other_programs.py loads the same folders in transformers.
"""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lambda_vit_jax.checkpoints import transformers_config
from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core.errors import (
  CheckpointError,
  ModelError,
  UsageError,
)
from lambda_vit_jax.core.files import read_json
from lambda_vit_jax.core.schema import Anything
from lambda_vit_jax.exporters import export
from lambda_vit_jax.models.edits import merge_tokens, prune
from lambda_vit_jax.models.model import Model, create_model
from tests.support.small_models import NANO, with_linear
from tests.support.transformers_members import CLASSES, member
from tests.support.trees import assert_same


@pytest.mark.parametrize('case', CLASSES)
def test_arrays_and_configuration_come_back(case, tmp_path):
  model = member(case)
  entry, _ = transformers_config.class_of(model)
  assert entry.layout == CLASSES[case].layout
  names = {entry.backbone, entry.classifier}
  report = export.export(model, tmp_path / 'out', formats=('transformers',))
  folder = tmp_path / 'out' / 'transformers'
  config = read_json(folder / 'config.json', Anything(), '')
  assert set(config['architectures']) < names
  assert report['differences']['transformers'] == 0.0
  found = load_pretrained(folder)
  assert_same(found.params, model.params)
  images = found.preprocessing
  assert images.mean == model.preprocessing.mean
  assert images.image_size == model.preprocessing.image_size
  assert images.crop_ratio == pytest.approx(
    model.preprocessing.crop_ratio,
    abs=0.05,  # Whole pixels.
  )
  if model.num_classes:
    assert config['id2label'] == {
      str(i): name for i, name in enumerate(model.class_names)
    }


def test_removed_attention_is_zeros_and_doubling_is_folded(tmp_path):
  """A network of another function would differ by more than the one epsilon."""
  model = prune(member('vit'), (0,))
  report = export.export(model, tmp_path / 'out', formats=('transformers',))
  found = load_pretrained(tmp_path / 'out' / 'transformers')
  assert found.attention_modes == ('full',) * model.depth
  attention = found.params['block00']['attn']
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(attention))
  differences = report['differences']
  assert differences['transformers'] <= differences['stock_epsilon'] + 1e-6


def test_a_classifier_of_dinov2_reads_the_class_token_alone(tmp_path):
  """Of its [classes, 2·embed] the second half is of the patches' mean."""
  model = member('dinov2-head')
  export.export(model, tmp_path / 'out', formats=('transformers',))
  folder = tmp_path / 'out' / 'transformers'
  arrays = load_file(folder / 'model.safetensors')
  kernel = arrays['classifier.weight']
  width = model.module.embed_dim
  assert kernel.shape == (model.num_classes, 2 * width)
  np.testing.assert_array_equal(
    kernel[:, :width], np.asarray(model.params['head']['kernel']).T
  )
  assert not kernel[:, width:].any()
  kernel[0, width] = 1.0
  save_file(arrays, folder / 'model.safetensors', metadata={'format': 'pt'})
  with pytest.raises(CheckpointError, match='the mean of the patches beside'):
    load_pretrained(folder)


def nano(**options) -> Model:
  return create_model(NANO, seed=3, **options)


REFUSED = {
  'its head': (
    lambda: _with_head(member('siglip')),
    'SiglipVisionModel has no head',
  ),
  'its pooling': (
    lambda: _pooled(member('dinov3')),
    "no class of it computes .* with pooling 'avg'",
  ),
  'a linear map': (lambda: with_linear(nano(), 0), 'is a linear map'),
  'merging': (lambda: merge_tokens(nano(), 1), 'no token merging'),
  'the shape': (lambda: nano(image_size=(8, 12)), 'images are 8 x 12'),
}


def _with_head(model: Model) -> Model:
  width = model.module.embed_dim
  head = {'kernel': np.ones((width, 3)), 'bias': np.zeros(3)}
  return model.replace(
    module=model.module.clone(num_classes=3),
    params=model.params | {'head': head},
  )


def _pooled(model: Model) -> Model:
  module = model.module.clone(pooling='avg')
  return dataclasses.replace(model, module=module)


@pytest.mark.parametrize('case', REFUSED)
def test_what_it_cannot_be_is_refused(case, tmp_path):
  make, message = REFUSED[case]
  with pytest.raises(ModelError, match=message):
    export.export(make(), tmp_path / 'out', formats=('transformers',))
  assert not (tmp_path / 'out').exists()


def test_int8_is_refused(tmp_path):
  with pytest.raises(UsageError, match='leave `transformers` out'):
    export.export(
      nano(), tmp_path / 'out', formats=('transformers',), dtype='int8'
    )
