"""MLPs with a width of their own, in every place that reads widths."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints import description
from lambda_vit_jax.checkpoints.timm_config import uniform_ratio, write_config
from lambda_vit_jax.core.errors import CheckpointError, ModelError
from lambda_vit_jax.exporters.onnx import vit as onnx_vit
from lambda_vit_jax.models import surgery
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.macs import size_of
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.variants import VARIANTS, get_variant
from tests.support.onnx_numpy import run_graph
from tests.support.search_models import make_images, make_model

IMAGES = make_images(4)
# Width 24, hidden 96: block 0 loses its MLP, block 1 most of its neurons.
KEPT = {0: (), 1: (5, 90, 2, 40, 7)}
KINDS = [
  {},
  {'layer_scale': 0.1},
  {'mlp_kind': 'swiglu'},
  {'mlp_kind': 'swiglu_packed'},
]
# Each compiles networks of its own.
COMPILED = [
  KINDS[0],
  *(pytest.param(fields, marks=pytest.mark.slow) for fields in KINDS[1:3]),
  KINDS[3],
]


def of_kind(tiny_variant, fields, **options):
  return make_model(dataclasses.replace(tiny_variant, **fields), **options)


def without_outputs(model, index, neurons):
  """The model whose neurons write nothing."""
  params = jax.tree.map(np.array, model.params)
  params[block_name(index)]['mlp']['fc2']['kernel'][list(neurons)] = 0.0
  return model.replace(params=params)


@pytest.mark.parametrize('fields', COMPILED, ids=str)
def test_neurons_that_write_nothing_can_go(tiny_variant, fields):
  model = of_kind(tiny_variant, fields)
  gone = [0, 3, 50, 95]
  model = without_outputs(model, 1, gone)
  narrow = lv.narrow_mlps(model, {1: sorted({*range(96)} - {*gone})})
  assert narrow.mlp_dims == (96, 92, 96)
  # The same sums without zeros, in another order.
  np.testing.assert_allclose(narrow(IMAGES), model(IMAGES), atol=1e-5)


@pytest.mark.parametrize('fields', COMPILED, ids=str)
def test_those_that_stay_are_those_that_were_named(tiny_variant, fields):
  model = of_kind(tiny_variant, fields)
  narrow = lv.narrow_mlps(model, KEPT)
  zeros = without_outputs(model, 1, {*range(96)} - {*KEPT[1]})
  zeros.params['block00']['mlp']['fc2']['kernel'][:] = 0.0
  zeros.params['block00']['mlp']['fc2']['bias'][:] = 0.0
  np.testing.assert_allclose(narrow(IMAGES), zeros(IMAGES), atol=1e-5)


def test_keeping_all_neurons_is_the_same_model(tiny_variant):
  model = make_model(tiny_variant)
  assert lv.narrow_mlps(model, {}) is model
  assert lv.narrow_mlps(model, {1: reversed(range(96))}) is model
  narrow = lv.narrow_mlps(model, {1: range(48)})
  # Nothing else has changed, and the old model has not.
  assert narrow.params['block00'] is model.params['block00']
  assert narrow.params['block01']['norm2'] is model.params['block01']['norm2']
  assert model.mlp_dims == (96, 96, 96)
  assert narrow.module.clone(mlp_dims=()) == model.module


def test_what_is_gone_has_no_array(tiny_variant):
  model = make_model(dataclasses.replace(tiny_variant, layer_scale=0.1))
  narrow = lv.narrow_mlps(model, KEPT)
  assert narrow.params['block00'].keys() == {'norm1', 'attn', 'ls1'}
  shapes = jax.tree.map(np.shape, narrow.params['block01']['mlp'])
  assert shapes == {
    'fc1': {'kernel': (24, 5), 'bias': (5,)},
    'fc2': {'kernel': (5, 24), 'bias': (24,)},
  }
  both = lv.prune(narrow, (0,), 'absent')
  assert 'block00' not in both.params
  # A block that does nothing may be dropped.
  short = lv.drop_blocks(both, (0,))
  assert short.mlp_dims == (5, 96)
  np.testing.assert_allclose(short(IMAGES), both(IMAGES), atol=1e-5)


@pytest.mark.parametrize('fields', KINDS, ids=str)
@pytest.mark.parametrize('removed', [(), (0,), (2,)])
def test_counts_equal_a_count_by_hand(tiny_variant, fields, removed):
  model = of_kind(tiny_variant, fields)
  narrow = lv.narrow_mlps(model, KEPT)
  matrices = 2 if 'mlp_kind' not in fields else 3
  tokens, width = 17, 24
  assert model.macs() - narrow.macs() == matrices * tokens * width * (96 + 91)
  # Per neuron its weights, and a bias in each matrix but the last; of the MLP
  # that is gone also the last bias, both of norm2 and LayerScale.
  fewer = (96 + 91) * (matrices * width + matrices - 1)
  fewer += width * (1 + 2 + ('layer_scale' in fields))
  assert model.num_parameters - narrow.num_parameters == fewer
  narrow = lv.prune(narrow, removed)
  assert size_of(narrow.module) == narrow.num_parameters
  shapes = jax.tree.map(np.shape, abstract_params(narrow.module))
  assert jax.tree.map(np.shape, narrow.params) == shapes


def test_blocks_without_either_half_double_the_stream_and_fold(tiny_variant):
  narrow = lv.prune(lv.narrow_mlps(make_model(tiny_variant), KEPT), (0, 2))
  plain = lv.fold(narrow)
  assert plain.attention_modes == ('absent', 'full', 'absent')
  assert 'block00' not in plain.params
  # Powers of two are exact; the program differs.
  np.testing.assert_allclose(plain(IMAGES), narrow(IMAGES), atol=1e-5)
  captured = narrow.apply(IMAGES)[1]['block00']
  np.testing.assert_array_equal(captured['output'], 2.0 * captured['input'])
  assert 'mlp' not in captured


def test_the_table_shows_the_widths(tiny_variant):
  model = make_model(tiny_variant)
  assert 'MLP widths' not in str(model)
  rows = dict(lv.narrow_mlps(model, KEPT).table().rows)
  assert rows['MLP widths'] == '0 5 96'


@pytest.mark.slow
def test_narrowing_an_int8_network_is_the_int8_of_its_numbers(tiny_variant):
  model = lv.quantize(make_model(tiny_variant))
  one = lv.dequantize(lv.narrow_mlps(model, KEPT))
  two = lv.narrow_mlps(lv.dequantize(model), KEPT)
  jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
  quantized = lv.narrow_mlps(model, KEPT)
  # Once dequantised in the products, once before them.
  np.testing.assert_allclose(quantized(IMAGES), two(IMAGES), atol=1e-4)


@pytest.mark.parametrize(
  'change',
  [
    lambda model: lv.merge_tokens(model, 3),
    pytest.param(
      lambda model: lv.with_decoder(model, Decoder('linear'), 4),
      marks=pytest.mark.slow,
    ),
  ],
  ids=['merging', 'decoder'],
)
def test_zero_neurons_and_none_are_alike_with(tiny_variant, change):
  model = change(make_model(tiny_variant))
  zeros = without_outputs(model, 1, range(96))
  zeros.params['block01']['mlp']['fc2']['bias'][:] = 0.0
  narrow = lv.narrow_mlps(model, {1: ()})
  np.testing.assert_allclose(narrow(IMAGES), zeros(IMAGES), atol=1e-5)


@pytest.mark.parametrize('fields', [KINDS[0], KINDS[3]], ids=str)
def test_an_mlp_with_zero_neurons_added_computes_the_same(tiny_variant, fields):
  dense = of_kind(tiny_variant, fields)
  narrow = lv.narrow_mlps(dense, {1: KEPT[1]})
  mlp = dense.params['block01']['mlp']
  wide = surgery.with_zero_neurons(
    narrow.params['block01']['mlp'], jax.tree.map(np.zeros_like, mlp)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape), wide, mlp
  )
  block = dense.params['block01'] | {'mlp': wide}
  found = dense.replace(params=dense.params | {'block01': block})
  np.testing.assert_allclose(found(IMAGES), narrow(IMAGES), atol=1e-5)


@pytest.fixture(scope='module')
def narrow():
  """Without an MLP, with a narrow one, and without any attention or MLP."""
  model = lv.create_model('vit_nano_patch2_8', seed=3)
  hidden = model.mlp_dims[0]
  model = lv.prune(model, (2,))
  return lv.narrow_mlps(model, {0: (), 1: range(0, hidden, 3), 2: ()})


@pytest.fixture(scope='module')
def exported(narrow, tmp_path_factory):
  folder = tmp_path_factory.mktemp('narrow') / 'out'
  lv.export(narrow, folder, formats='safetensors')
  return folder


@pytest.mark.parametrize('source', ['', 'model.safetensors'])
def test_files_are_read_back(narrow, exported, source):
  found = lv.load_pretrained(exported / source)
  assert found.mlp_dims == narrow.mlp_dims
  np.testing.assert_allclose(found(IMAGES), narrow(IMAGES), atol=1e-5)


def test_files_have_no_array_of_what_is_gone(narrow, exported):
  report = json.loads((exported / 'model.json').read_text())
  assert report['mlp_dims'] == list(narrow.mlp_dims)
  names = load_file(exported / 'model.safetensors')
  assert not [n for n in names if n.startswith('blocks.2.')]
  assert not [
    n for n in names if n.startswith(('blocks.0.mlp', 'blocks.0.norm2'))
  ]


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_whole_programs_are_exported(narrow, tmp_path, dtype):
  # The export itself compares the logits of every format.
  report = lv.export(narrow, tmp_path / 'out', 'stablehlo', dtype)
  assert report['differences']['stablehlo'] < 1e-4
  assert report['differences']['orbax'] < 1e-4


def test_the_onnx_graph_has_the_widths(narrow):
  graph = onnx_vit.build(lv.fold(narrow))
  np.testing.assert_allclose(
    run_graph(graph, IMAGES), narrow(IMAGES), atol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize('fields', KINDS, ids=str)
def test_zero_fill_has_every_array_of_the_variant(
  tmp_path, monkeypatch, tiny_variant, fields
):
  variant = dataclasses.replace(
    tiny_variant, timm_name='vit_tiny_patch16_224', **fields
  )
  monkeypatch.setitem(VARIANTS, 'tiny', variant)
  dense = make_model(variant)
  model = lv.prune(lv.narrow_mlps(dense, KEPT), (0,), 'absent')
  lv.export(model, tmp_path / 'out', formats='safetensors', zero_fill=True)
  path = tmp_path / 'out/model.safetensors'
  lv.export(dense, tmp_path / 'dense', formats='safetensors')
  shapes, whole = (
    {name: array.shape for name, array in load_file(file).items()}
    for file in (path, tmp_path / 'dense/model.safetensors')
  )
  assert shapes == whole
  config = json.loads((tmp_path / 'out/config.json').read_text())
  assert config['mlp_dims'] == [96, 96, 96]
  found = lv.load_pretrained(path)
  assert found.module.clone(attention_kernel='auto') == model.module.clone(
    attention_kernel='auto'
  )
  jax.tree.map(np.testing.assert_array_equal, found.params, model.params)


@pytest.mark.parametrize('width', range(1, 97, 7))
def test_one_width_in_all_blocks_is_a_ratio_for_timm(tiny_variant, width):
  model = make_model(tiny_variant)
  equal = lv.narrow_mlps(model, dict.fromkeys(range(3), range(width)))
  ratio = uniform_ratio(equal.module)
  # As timm makes it.
  assert int(24 * ratio) == width
  plain = make_module(tiny_variant, mlp_ratio=ratio)
  assert plain.hidden_dims == equal.mlp_dims


@pytest.mark.parametrize('kept', [{}, KEPT, dict.fromkeys(range(3), ())])
def test_other_widths_are_no_ratio(tiny_variant, kept):
  model = make_model(tiny_variant)
  assert uniform_ratio(lv.narrow_mlps(model, kept).module) is None


def test_packed_halves_count_twice_in_timms_ratio():
  variant = get_variant('vit_nano_patch2_8')
  model = make_model(variant, mlp_kind='swiglu_packed')
  model = model.replace(variant=variant.name)
  equal = lv.narrow_mlps(model, dict.fromkeys(range(3), range(10)))
  arguments = write_config(equal)['model_args']
  assert int(model.module.embed_dim * arguments['mlp_ratio']) == 20


@pytest.mark.parametrize(
  'widths',
  [[96, 5], [96, 5, -1], [96, 5, 1 << 17], [96, 5, 1.5], 'ab', [96, 5, True]],
)
def test_wrong_widths_in_a_description_are_refused(tiny_variant, widths):
  model = lv.create_model('vit_nano_patch2_8')
  fields = description.describe(model)
  assert description.rebuild(fields, 'here').module == model.module
  with pytest.raises(CheckpointError, match='mlp_dims'):
    description.rebuild(fields | {'mlp_dims': widths}, 'here')


def test_arrays_of_another_width_are_refused(narrow, tmp_path, exported):
  shutil.copytree(exported, tmp_path / 'out')
  path = tmp_path / 'out/model.json'
  fields = json.loads(path.read_text())
  path.write_text(json.dumps(fields | {'mlp_dims': [0, 7, 0]}))
  with pytest.raises(CheckpointError):
    lv.load_export(tmp_path / 'out')


def test_a_file_without_widths_is_one_of_the_variants(narrow):
  model = lv.create_model('vit_nano_patch2_8')
  fields = description.describe(model)
  del fields['mlp_dims']
  assert description.rebuild(fields, 'here').module == model.module


@pytest.mark.slow
def test_a_search_sees_the_same_network_as_with_zeros(tiny_variant):
  model = make_model(tiny_variant, depth=4)
  model = lv.prune(model, (3,), 'absent')
  zeros = without_outputs(model, 0, range(96))
  zeros.params['block00']['mlp']['fc2']['bias'][:] = 0.0
  narrow = lv.narrow_mlps(model, {0: (), 3: range(96)})
  images = [make_images(128)]
  one, two = (lv.nose(m, images, num_layers=2) for m in (narrow, zeros))
  assert one.order == two.order
  profile = lv.entropy_profile(narrow, images)
  assert profile.mlp_entropy[0] is None


@pytest.mark.parametrize(
  'kept, message',
  [
    ({3: (1,)}, '3 is out of range: blocks are 0 to 2'),
    ({0: (96,)}, '96 is out of range: neurons of block 0 are 0 to 95'),
    ({0: (1.0,)}, '1.0 is out of range'),
    ({True: (1,)}, 'True is out of range'),
    ({0: 5}, 'narrow_mlps: 5 for block 0: give the indices'),
    ({0: (1, 1)}, 'block 0 has a neuron that is given twice'),
  ],
)
def test_neurons_that_cannot_be_kept(tiny_variant, kept, message):
  with pytest.raises(ModelError, match=message):
    lv.narrow_mlps(make_model(tiny_variant), kept)


def test_a_normalised_hidden_layer_stays_whole_or_goes(tiny_variant):
  fields = {'mlp_kind': 'swiglu', 'mlp_norm': True}
  model = of_kind(tiny_variant, fields)
  with pytest.raises(ModelError, match='hidden layer of block 1 is normalised'):
    lv.narrow_mlps(model, {1: (1, 2)})
  assert lv.narrow_mlps(model, {1: ()}).mlp_dims == (96, 0, 96)


@pytest.mark.parametrize('widths', [(1, 2), (1, 2, -1)])
def test_impossible_widths_are_refused(tiny_variant, widths):
  with pytest.raises(ModelError, match='mlp_dims'):
    make_module(tiny_variant, mlp_dims=widths)


def test_a_network_is_made_with_widths(tiny_variant):
  module = make_module(tiny_variant, mlp_dims=[96, 96, 96])
  assert module == make_module(tiny_variant)
  assert make_module(tiny_variant, mlp_dims=(1, 0, 96)).hidden_dims == (
    1,
    0,
    96,
  )
