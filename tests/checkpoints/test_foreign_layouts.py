"""Files of other programs: their names, wrappers and prefixes.

A wrong program that takes one layout for another, ignores an array or loads
the wrong one of several sets passes every test of timm's files.
"""

import json
import logging

import numpy as np
import pytest
from safetensors.numpy import save_file

from lambda_vit_jax.checkpoints import convert, weight_sets
from lambda_vit_jax.checkpoints.layout_tables import LAYOUTS
from lambda_vit_jax.checkpoints.layouts import nearest_layout
from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.variants import VARIANTS
from tests.support import layout_files
from tests.support.trees import assert_same

NUMBERED = [pytest.param(x, id=f'{i}') for i, x in enumerate(LAYOUTS)]
PLAIN = layout_files.PLAIN


@pytest.fixture(autouse=True)
def registered():
  with layout_files.opened():
    yield


@pytest.fixture(scope='module')
def files():
  """The arrays of a tiny file of each layout."""
  return {layout: layout_files.arrays_of(layout) for layout in LAYOUTS}


def decoded(arrays, layout):
  """The arrays read as the layout's, or None where they are refused."""
  expected = abstract_params(
    make_module(layout_files.member_of(layout).variant)
  )
  shapes = {name: array.shape for name, array in arrays.items()}
  try:
    return convert.decode(
      shapes, arrays.__getitem__, expected, 'file', layout.rules
    )
  except CheckpointError:
    return None


@pytest.mark.parametrize('layout', NUMBERED)
def test_own_names_are_read_and_no_others(layout, files):
  own = layout_files.params_of(layout_files.member_of(layout))
  assert_same(decoded(files[layout], layout), own)
  for other in LAYOUTS:
    found = decoded(files[other], layout)
    if found is not None:
      # The same arrays under the same names: the same network.
      assert set(files[other]) == set(files[layout])
      assert_same(found, own)


@pytest.mark.parametrize('layout', NUMBERED)
def test_a_file_is_recognised_by_its_names(layout, files):
  found, count = nearest_layout(files[layout], LAYOUTS)
  assert count == len(files[layout])
  assert set(
    convert.encode(
      layout_files.params_of(layout_files.member_of(layout)), found.rules
    )
  ) == set(files[layout])


@pytest.mark.parametrize('layout', NUMBERED)
def test_a_state_dict_is_read_as_its_file(layout, files, tmp_path):
  """The same arrays in memory: what a layout implies holds there, too."""
  member = layout_files.member_of(layout)
  save_file(files[layout], tmp_path / 'model.safetensors')
  there = load_pretrained(tmp_path / 'model.safetensors', variant=member.name)
  here = load_pretrained(files[layout], variant=member.name)
  assert here.module == there.module
  assert here.preprocessing == there.preprocessing
  assert_same(here.params, there.params)


@pytest.mark.parametrize('layout', NUMBERED)
def test_each_missing_array_is_named(layout, files, tmp_path):
  member = layout_files.member_of(layout)
  arrays = dict(files[layout])
  name = next(x for x in arrays if 'mlp' in x.lower() or 'dense' in x)
  del arrays[name]
  with pytest.raises(CheckpointError) as caught:
    load_pretrained(arrays, variant=member.name)
  assert convert.grouped([name])[0] in str(caught.value)
  assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
  'case', layout_files.CASES, ids=lambda case: f'{case.title}-{case.chosen}'
)
def test_every_case(case, tmp_path, caplog):
  where = case.write(tmp_path)
  if 'refused' in layout_files.outcome(case):
    with pytest.raises(CheckpointError) as caught:
      load_pretrained(where, variant=case.member.name)
    text = str(caught.value).replace(str(tmp_path), '')
    assert '\n' not in text
    assert len(text) <= 300
    return
  caplog.clear()
  with caplog.at_level(logging.WARNING):
    model = load_pretrained(where, variant=case.member.name)
  assert_same(model.params, layout_files.params_of(case.member))
  assert len(caplog.records) <= 1


def test_the_set_that_is_named_is_the_one_that_is_loaded(tmp_path):
  averaged = {k: v + 1 for k, v in layout_files.plain().items()}
  content = {'model': layout_files.plain(), 'ema': {'shadow': averaged}}
  case = layout_files.Case('two', lambda: content, 'run.pth', 'ema.shadow')
  model = load_pretrained(case.write(tmp_path), variant=PLAIN.name)
  own = layout_files.params_of(PLAIN)
  np.testing.assert_array_equal(
    model.params['norm']['bias'], own['norm']['bias'] + 1
  )
  with pytest.raises(
    CheckpointError, match='under this name; it holds model, ema'
  ):
    load_pretrained(tmp_path / 'run.pth#em', variant=PLAIN.name)


@pytest.mark.parametrize(
  'names, prefix',
  [
    (('module.a', 'module.b'), 'module.'),
    (('module.a.x', 'module.a.y'), 'module.a.'),
    (('ab', 'ac'), ''),
    (('a.b',), ''),
    (('params/x', 'params/y/z'), 'params/'),
  ],
)
def test_shared_prefixes_end_with_a_part(names, prefix):
  assert weight_sets.shared_prefix(names) == prefix


@pytest.mark.parametrize(
  'change, words',
  [
    ('file', 'is missing beside it'),
    ('array', 'is not in model-00001-of-00002.safetensors'),
    ('place', 'but must be a file'),
  ],
)
def test_damaged_shards(change, words, tmp_path):
  case = next(x for x in layout_files.CASES if x.title == 'sharded')
  path = tmp_path / case.name
  case.write(tmp_path)
  index = json.loads(path.read_text())
  first = 'model-00001-of-00002.safetensors'
  if change == 'file':
    (tmp_path / first).unlink()
  elif change == 'array':
    index['weight_map'] |= {'norm.other': first}
  else:
    index['weight_map'] |= {'norm.bias': '../x.safetensors'}
  path.write_text(json.dumps(index))
  with pytest.raises(CheckpointError, match=words):
    load_pretrained(tmp_path, variant=PLAIN.name)


@pytest.mark.parametrize('size', ['stated', 'unknown'])
def test_a_config_json_states_a_network_without_a_name(size, tmp_path):
  layout = next(x for x in LAYOUTS if x.title == "transformers' ViT")
  member = layout_files.member_of(layout)
  save_file(layout_files.arrays_of(layout), tmp_path / 'model.safetensors')
  config = {
    'model_type': 'vit',
    'hidden_size': 24,
    'num_hidden_layers': 2,
    'num_attention_heads': 3,
    'intermediate_size': 96,
    'patch_size': 4,
    'image_size': 16,
    'layer_norm_eps': 1e-5,
    'hidden_act': 'quick_gelu',
  }
  if size == 'unknown':
    config.pop('num_attention_heads')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  # No variant has these sizes.
  for other in layout_files.CASES:
    VARIANTS.pop(other.member.name, None)
  if size == 'unknown':
    with pytest.raises(CheckpointError, match="the names of transformers' ViT"):
      load_pretrained(tmp_path)
    return
  model = load_pretrained(tmp_path)
  assert_same(model.params, layout_files.params_of(member))
  assert set(model.module.norm_eps) == {1e-5}
  assert model.module.activation == 'quick_gelu'


def test_swapped_sizes_of_query_and_value_are_seen():
  layout = next(x for x in LAYOUTS if x.title == "transformers' ViT")
  arrays = layout_files.arrays_of(layout)
  name = 'encoder.layer.0.attention.attention.{}.weight'
  # Together they still have as many rows as the fused array.
  arrays[name.format('query')] = np.zeros((12, 24), np.float32)
  arrays[name.format('value')] = np.zeros((36, 24), np.float32)
  with pytest.raises(
    CheckpointError, match=r'query.* is 12×24, expected 24×24'
  ):
    load_pretrained(arrays, variant=layout_files.member_of(layout).name)


def test_titles_and_families_are_of_known_variants():
  names = [name for name in VARIANTS if '.' not in name]
  for layout in LAYOUTS:
    assert any(name.startswith(layout.families) for name in names)
    assert not layout.stock or layout.stock in VARIANTS
