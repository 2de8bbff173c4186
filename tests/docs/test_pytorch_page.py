"""docs/pytorch.md's lines load exports, as far as names and shapes tell."""

import json
import sys

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax import exporters
from lambda_vit_jax.checkpoints.convert import encode
from lambda_vit_jax.checkpoints.timm_config import write_config
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import get_variant
from tests.support import doc_pages, timm_stub

PAGE = doc_pages.ROOT / 'docs' / 'pytorch.md'


def _widths(*counts):
  return {index: range(count) for index, count in enumerate(counts)}


@pytest.mark.parametrize(
  'kept',
  [{}, _widths(40, 7, 0), _widths(0, 9, 3), _widths(40, 40, 40)],
  ids=['whole', 'last gone', 'first gone', 'equal'],
)
def test_the_lines_load_an_export_like_the_quickstarts(
  tmp_path, monkeypatch, kept
):
  """Of its kind: a grey, small network that timm has no name for."""
  for name, module in timm_stub.modules().items():
    monkeypatch.setitem(sys.modules, name, module)
  # Imported with the stubs, and not to stay.
  loader = 'lambda_vit_jax.exporters.pytorch'
  monkeypatch.delitem(sys.modules, loader, raising=False)
  monkeypatch.delattr(exporters, 'pytorch', raising=False)
  monkeypatch.chdir(tmp_path)
  model = lv.prune(lv.create_model('vit_nano_patch2_8'), (0, 2))
  model = lv.narrow_mlps(model, kept)
  lv.export(model, 'export', formats=('safetensors',))
  scope = {}
  exec(doc_pages.fences(PAGE, 'python')[0], scope)
  found = scope['model']
  epsilons = json.loads((tmp_path / 'export/config.json').read_text())[
    'norm_eps'
  ]
  assert found.norm.eps == epsilons[-1]
  for index, block in enumerate(found.blocks):
    if model.mlp_dims[index]:
      assert block.norm2.eps == epsilons[index]
    # Blocks without attention are 0 and 2.
    lacking = index in (0, 2) or not model.mlp_dims[index]
    assert hasattr(block, 'forward') == lacking
  monkeypatch.delitem(sys.modules, loader)
  monkeypatch.delattr(exporters, 'pytorch')


@pytest.mark.parametrize(
  'variant, options',
  [
    ('vit_tiny_patch16_224', {}),
    ('vit_mini_patch2_8', {}),
    ('vit_mini_patch4_32', {}),
    ('vit_nano_patch2_8', {}),
    ('vit_nano_patch2_8', {'num_classes': 0}),
    ('vit_nano_patch2_8', {'image_size': (12, 8)}),
    ('vit_nano_patch2_8', {'pooling': 'avg'}),
    ('vit_nano_patch2_8', {'pooling': 'avg', 'norm_before_pool': False}),
    ('vit_nano_patch2_8', {'layer_scale': 1e-5}),
    ('vit_nano_patch2_8', {'num_registers': 2}),
    ('vit_nano_patch2_8', {'num_registers': 2, 'position_on_class': False}),
    ('vit_nano_patch2_8', {'pre_norm': True}),
  ],
  ids=str,
)
def test_the_arguments_tell_all_that_differs_from_timms(variant, options):
  spec = get_variant(variant)
  module = make_module(spec, **options)
  # Not initialised, which would compile a program per network.
  params = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(module)
  )
  model = Model(module, params, variant, spec.preprocessing(module.image_size))
  if variant == 'vit_nano_patch2_8':
    # Of another depth than its variant, too.
    model = lv.drop_blocks(model, (1,))
  config = write_config(model)
  stock = timm_stub.create_model(
    config['architecture'], config['num_classes'], **config['model_args']
  )
  state = {n: a.shape for n, a in encode(model.params).items()}
  assert stock.shapes() == state
  assert stock.num_heads == model.module.num_heads
