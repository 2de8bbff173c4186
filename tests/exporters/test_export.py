"""Exports reproduce the model's logits, or are refused and leave no trace."""

import dataclasses
import json
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.checkpoints.description import describe, rebuild
from lambda_vit_jax.checkpoints.load import load_export, load_pretrained
from lambda_vit_jax.core import digests, processor
from lambda_vit_jax.core.errors import (
  CheckpointError,
  DataError,
  LambdaVitError,
  ModelError,
  UsageError,
)
from lambda_vit_jax.exporters import export, openvino_ir
from lambda_vit_jax.exporters.comparison import difference
from lambda_vit_jax.exporters.formats import FORMATS, Format, write_safetensors
from lambda_vit_jax.exporters.source import cast_params, make_source
from lambda_vit_jax.models.build import (
  abstract_params,
  make_module,
)
from lambda_vit_jax.models.edits import fold, prune
from lambda_vit_jax.models.macs import count_parameters
from lambda_vit_jax.models.model import Model, create_model
from lambda_vit_jax.models.variants import VARIANTS
from tests.support.family_members import MEMBERS
from tests.support.small_models import NANO, with_linear
from tests.support.trees import assert_same, numbered

FILES = ('safetensors',)


@pytest.fixture(scope='module')
def pruned() -> Model:
  model = create_model(NANO, seed=3, removed_layers=(1,))
  return model.replace(class_names=tuple('abcdefghij'))


@pytest.fixture(scope='module')
def exported(pruned, tmp_path_factory):
  """The folder with everything in it, and the report."""
  folder = tmp_path_factory.mktemp('run') / 'export'
  report = export.export(pruned, folder, extra={'note': 'ours'})
  return folder, report


def scaled(model, scale=10.0):
  """A model with the same structure and larger weights."""
  return model.replace(params=jax.tree.map(lambda x: scale * x, model.params))


def test_report_and_model_json(exported, pruned):
  folder, report = exported
  assert {path.name for path in folder.iterdir()} == {
    'config.json',
    'model.json',
    'model.safetensors',
    'model.stablehlo',
    'params',
  }
  fields = json.loads((folder / 'model.json').read_text())
  assert fields['attention_modes'] == ['full', 'identity', 'full']
  assert fields['removed_layers'] == [1]
  assert fields['norm_eps'] == [1e-6] * 4
  assert fields['folded']['attention_modes'] == ['full', 'absent', 'full']
  assert fields['folded']['norm_eps'] == [1e-6] + [1e-6 / 4] * 3
  assert fields['class_names'] == list('abcdefghij')
  assert fields['num_parameters'] == pruned.num_parameters
  assert fields['preprocessing'] == {
    'image_size': [8, 8],
    'mean': [0.5],
    'std': [0.5],
    'crop_ratio': 1.0,
    'interpolation': 'bicubic',
  }
  assert {'jax', 'flax', 'lambda_vit_jax', 'python'} <= set(fields['versions'])
  assert fields['note'] == 'ours'
  assert fields['differences'] == report['differences']
  # The same parameters, and the same function in another order of sums.
  assert report['differences']['orbax'] == 0.0
  assert report['differences']['safetensors'] < 1e-5
  assert report['differences']['stablehlo'] < 1e-5
  assert report['bytes']['model.safetensors'] == (
    (folder / 'model.safetensors').stat().st_size
  )
  assert report['warnings'] == []


@pytest.mark.parametrize('load', [load_export, load_pretrained])
def test_load_export_gives_the_unfolded_model(exported, pruned, load):
  folder, _ = exported
  model = load(folder)
  assert_same(model.params, pruned.params)
  assert model.module == pruned.module.clone(
    dtype=jnp.float32, attention_kernel=model.module.attention_kernel
  )
  assert model.class_names == pruned.class_names
  assert model.preprocessing == pruned.preprocessing


def test_params_and_model_json_are_enough(exported, pruned, tmp_path, images):
  """In a new process, from those two alone."""
  folder, _ = exported
  copy = tmp_path / 'export'
  copy.mkdir()
  (copy / 'model.json').write_bytes((folder / 'model.json').read_bytes())
  shutil.copytree(folder / 'params', copy / 'params')
  np.save(tmp_path / 'images.npy', images)
  code = (
    'import sys, numpy; from lambda_vit_jax.checkpoints.load import load_export; '
    'numpy.save(sys.argv[3], load_export(sys.argv[1])(numpy.load(sys.argv[2])))'
  )
  paths = [copy, tmp_path / 'images.npy', tmp_path / 'logits.npy']
  subprocess.run([sys.executable, '-c', code, *map(str, paths)], check=True)
  # The bound; another process may split the sums over other threads.
  np.testing.assert_allclose(
    np.load(tmp_path / 'logits.npy'), pruned(images), atol=1e-5
  )


def test_removed_attention_layers_are_in_no_file(exported):
  folder, _ = exported
  names = set(load_file(folder / 'model.safetensors'))
  assert 'blocks.0.attn.qkv.weight' in names
  assert 'blocks.1.mlp.fc1.weight' in names
  assert not {
    name
    for name in names
    if name.startswith(('blocks.1.attn', 'blocks.1.norm1'))
  }
  tree = load_export(folder).params
  assert set(tree['block01']) == {'norm2', 'mlp'}


def test_stablehlo_runs_without_our_code_for_any_batch(
  exported, pruned, rng, tmp_path
):
  folder, _ = exported
  images = rng.normal(size=(5, 8, 8, 1)).astype(np.float32)
  np.save(tmp_path / 'images.npy', images)
  code = (
    'import sys, jax.export, numpy\n'
    'data = open(sys.argv[1], "rb").read()\n'
    'program = jax.export.deserialize(bytearray(data))\n'
    'images = numpy.load(sys.argv[2])\n'
    'assert program.call(images[:2]).shape == (2, 10)\n'
    'numpy.save(sys.argv[3], program.call(images))\n'
    'assert program.platforms == ("cpu", "cuda", "tpu")\n'
    'assert not [m for m in sys.modules if m in ("lambda_vit_jax", "flax")]\n'
  )
  paths = [
    folder / 'model.stablehlo',
    tmp_path / 'images.npy',
    tmp_path / 'logits.npy',
  ]
  subprocess.run([sys.executable, '-c', code, *map(str, paths)], check=True)
  # The bound; the order of sums differs.
  np.testing.assert_allclose(
    np.load(tmp_path / 'logits.npy'), pruned(images), atol=1e-4
  )


def test_safetensors_reloads_folded_with_its_epsilons(exported, pruned):
  folder, _ = exported
  folded = fold(pruned)
  model = load_pretrained(folder / 'model.safetensors')
  assert model.attention_modes == folded.attention_modes
  assert model.module.norm_eps == folded.module.norm_eps
  # Powers of two: scaling loses no bit.
  assert_same(model.params, folded.params)


def test_two_exports_are_the_same_bytes(tmp_path, pruned):
  """The library orders the metadata in one of six ways, by chance."""
  source = make_source(pruned, 'float32', False, 'weights')
  found = set()
  for index in range(8):
    folder = tmp_path / str(index)
    folder.mkdir()
    write_safetensors(folder, source)
    found.add((folder / 'model.safetensors').read_bytes())
  (data,) = found
  # As the format asks: padded with spaces to a multiple of eight.
  size = int.from_bytes(data[:8], 'little')
  assert size % 8 == 0
  assert list(json.loads(data[8 : 8 + size])['__metadata__']) == [
    'format',
    'lambda_vit_jax',
    'sha256',
  ]


def test_one_format_may_be_a_string(tmp_path, pruned):
  report = export.export(pruned, tmp_path / 'out', formats='safetensors')
  assert set(report['bytes']) == {'params', 'model.safetensors', 'config.json'}


def test_safetensors_opens_where_it_is_alone(exported, tmp_path, pruned):
  folder, _ = exported
  path = tmp_path / 'moved.safetensors'
  path.write_bytes((folder / 'model.safetensors').read_bytes())
  model = load_pretrained(path)
  assert model.removed_layers == (1,)
  assert model.class_names == pruned.class_names


@pytest.mark.parametrize('removed', [(), (0,)], ids=['dense', 'pruned'])
@pytest.mark.parametrize('member', MEMBERS, ids=lambda member: member.name)
def test_safetensors_round_trip_of_every_family(
  member, removed, tmp_path, monkeypatch
):
  monkeypatch.setitem(VARIANTS, member.name, member.variant)
  modes = tuple('identity' if i in removed else 'full' for i in range(2))
  module = make_module(member.variant, attention_modes=modes)
  params = numbered(abstract_params(module))
  model = Model(
    module=module,
    params=params,
    variant=member.name,
    preprocessing=member.variant.preprocessing(module.image_size),
  )
  folded = fold(model)
  # Twice: what comes out of a file goes into the next unchanged.
  for name in ('first', 'second'):
    (tmp_path / name).mkdir()
    source = make_source(model, 'float32', False, 'weights')
    write_safetensors(tmp_path / name, source)
    model = load_pretrained(tmp_path / name / 'model.safetensors')
    assert model.module == folded.module
    assert_same(model.params, folded.params)


def test_folded_is_the_same_function(pruned, images):
  dense = create_model(NANO, seed=4)
  model = prune(dense, (0, 1))
  folded = fold(model)
  # The bound for float32: rounding of another order of magnitude.
  assert difference(model(images), folded(images)) < 1e-5
  with jax.enable_x64(True):
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params)
    halved = jax.tree.map(lambda x: np.asarray(x, np.float64), folded.params)
    features = [
      m.module.clone(dtype=jnp.float64).apply(
        {'params': params}, np.asarray(images, np.float64)
      )[1]['features']
      for m, params in ((model, double), (folded, halved))
    ]
    assert features[0].dtype == jnp.float64
    # Folding is exact: what remains is float64 rounding.
    assert difference(*features) < 1e-12


def test_zero_fill_computes_the_same_with_every_array_there(
  pruned, images, tmp_path
):
  report = export.export(
    pruned, tmp_path / 'out', formats=FILES, zero_fill=True
  )
  assert report['differences']['safetensors'] < 1e-5
  path = tmp_path / 'out' / 'model.safetensors'
  dense = make_module(NANO)
  names = convert.encode(
    jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), abstract_params(dense))
  )
  arrays = load_file(path)
  assert {n: a.shape for n, a in arrays.items()} == {
    n: a.shape for n, a in names.items()
  }
  # A stock program: plain names, every block full, one epsilon.
  save_file(arrays, tmp_path / 'stock.safetensors')
  stock = load_pretrained(tmp_path / 'stock.safetensors')
  assert stock.attention_modes == ('full',) * 3
  # Other images than those of the export's own check.
  found = difference(pruned(images), stock(images))
  assert found < 10 * report['differences']['stock_epsilon'] + 1e-6
  # Our reader drops the zeros, and checks that they are zeros.
  assert load_pretrained(path).removed_layers == (1,)
  with safe_open(path, framework='numpy') as file:
    metadata = file.metadata()
  arrays['blocks.1.attn.proj.bias'] = arrays['blocks.1.attn.proj.bias'] + 1
  # Without its digest, which would tell first.
  del metadata['sha256']
  save_file(arrays, path, metadata=metadata)
  with pytest.raises(CheckpointError, match=r'proj\.bias is not zero'):
    load_pretrained(path)


def test_linear_blocks(pruned, images, tmp_path):
  model = with_linear(pruned)
  export.export(model, tmp_path / 'out', formats=FILES)
  arrays = load_file(tmp_path / 'out' / 'model.safetensors')
  kernel = model.params['block00']['attn']['linear']['kernel']
  np.testing.assert_array_equal(
    arrays['blocks.0.attn.linear.weight'], np.asarray(kernel).T
  )
  assert 'blocks.0.norm1.weight' not in arrays
  found = load_pretrained(tmp_path / 'out' / 'model.safetensors')
  assert found.attention_modes == ('linear', 'absent', 'full')
  # The same function, folded.
  assert difference(model(images), found(images)) < 1e-5
  with pytest.raises(ModelError, match='block 0 is a linear map'):
    export.export(model, tmp_path / 'out', formats=FILES, zero_fill=True)
  assert load_export(tmp_path / 'out').attention_modes[0] == 'linear'


@pytest.mark.parametrize(
  # A weight is off by at most half a unit in the last place, 2^-9 or 2^-12
  # of it; logits of order one by a little more.
  'dtype, formats, bound',
  [
    ('bfloat16', ('safetensors', 'stablehlo'), 2e-2),
    ('float16', ('safetensors',), 2e-3),
  ],
)
def test_half_precision(pruned, tmp_path, dtype, formats, bound):
  report = export.export(pruned, tmp_path / 'out', formats=formats, dtype=dtype)
  # Two bytes a number; header and program text take some thousands.
  extra = {'safetensors': 8000, 'stablehlo': 60_000}
  for name in formats:
    size = report['bytes'][f'model.{name}']
    assert size < 2 * pruned.num_parameters + extra[name]
    assert 0 < report['differences'][name] < bound
  found = load_pretrained(tmp_path / 'out' / 'model.safetensors')
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found.params))
  # What we ship for ourselves is as trained.
  assert_same(load_export(tmp_path / 'out').params, pruned.params)


@pytest.mark.parametrize('before', [False, True])
def test_average_pooling_in_every_format(before, images, tmp_path):
  """Every format is compared with the model; here the model is pooled."""
  model = create_model(
    NANO,
    seed=3,
    num_registers=2,
    removed_layers=(2,),
    pooling='avg',
    norm_before_pool=before,
  )
  _, taps = model.apply(images)
  stream = np.asarray(taps['block02']['output'], np.float64)
  pooled = stream[:, 3:] if before else stream[:, 3:].mean(axis=1)
  pooled = pooled - pooled.mean(axis=-1, keepdims=True)
  pooled /= np.sqrt((pooled**2).mean(axis=-1, keepdims=True) + 1e-6)
  pooled = pooled.mean(axis=1) if before else pooled
  # A new norm has scale 1 and bias 0; float32 against float64.
  np.testing.assert_allclose(taps['features'], pooled, atol=1e-5)
  formats = ('safetensors', 'stablehlo')
  report = export.export(model, tmp_path / 'out', formats=formats)
  assert set(report['differences']) >= {'orbax', *formats}
  for path in (tmp_path / 'out', tmp_path / 'out' / 'model.safetensors'):
    found = load_pretrained(path)
    assert found.module.pooling == 'avg'
    assert found.module.norm_before_pool == before
    assert difference(model(images), found(images)) < 1e-5
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['model_args']['global_pool'] == 'avg'
  assert config['model_args']['fc_norm'] == (not before)


def test_float16_keeps_what_it_cannot_hold():
  params = {
    'fine': np.float32([1.0, 1e-3]),
    'large': np.float32([1.0, 1e5]),
    'small': np.float32([1e-7, 3e-8]),
    'zero': np.zeros(3, np.float32),
  }
  cast, kept = cast_params(params, 'float16')
  assert kept == ['large', 'small']
  assert {n: str(a.dtype) for n, a in cast.items()} == {
    'fine': 'float16',
    'large': 'float32',
    'small': 'float32',
    'zero': 'float16',
  }
  cast, kept = cast_params(params, 'bfloat16')
  assert kept == []


def test_stock_epsilon_is_measured_and_warned_about(tmp_path, pruned):
  # A stream of tiny variance, where an epsilon of 1e-6 counts: everything
  # that writes into it is scaled down.
  flat = {
    path: 1e-3 * leaf
    if path.startswith(('patch', 'cls', 'pos'))
    or any(part in path for part in ('/proj/', '/fc2/'))
    else leaf
    for path, leaf in convert.flatten(pruned.params).items()
  }
  params = convert.unflatten(flat)
  report = export.export(
    pruned.replace(params=params), tmp_path / 'out', formats=FILES
  )
  assert report['differences']['stock_epsilon'] > 1e-3
  (warning,) = report['warnings']
  assert 'one epsilon' in warning
  assert report['differences']['safetensors'] < 1e-5


def test_deit_b_pruned_by_five_is_small_enough():
  module = make_module(
    'deit_base_patch16_224',
    attention_modes=['absent'] * 5 + ['full'] * 7,
  )
  params = abstract_params(module)
  count = count_parameters(params)
  # The published figures, docs/method.md#what-is-counted.
  assert round(count / 1e6, 2) == 74.75
  model = Model(
    module=module,
    params=params,
    variant='deit_base_patch16_224',
    preprocessing=VARIANTS['deit_base_patch16_224'].preprocessing((224, 224)),
    class_names=(),
  )
  # Per array: a name and two offsets; and the description twice over.
  header = 150 * len(convert.flatten(params)) + 2 * len(
    json.dumps(describe(model))
  )
  assert 4 * count + header <= 299_100_000


# --- what is refused, and what stays ---


@pytest.mark.parametrize(
  'options, error, message',
  [
    ({'formats': ('stablehl',)}, UsageError, 'did you mean stablehlo'),
    ({'dtype': 'int4'}, UsageError, 'known are float32'),
    ({'check_images': np.zeros((2, 4, 4, 1))}, DataError, 'check_images has'),
    ({'check_images': np.zeros((0, 8, 8, 1))}, DataError, 'holds no image'),
    (
      {'check_images': (1, 2, 3)},
      DataError,
      r'a tuple of 3; give images, or \(',
    ),
    # The folder could not be loaded, or as another network.
    (
      {'extra': {'variant': 'x'}},
      UsageError,
      'has `variant`, which model.json',
    ),
    ({'extra': {'files': {}}}, UsageError, 'has `files`'),
    ({'extra': {'macs': 1}}, UsageError, 'choose another name'),
    ({'extra': {'linearize': [1]}}, CheckpointError, '`linearize` is a list'),
    (
      {'extra': {'a': np.float32(1)}},
      UsageError,
      "extra.'a'. is no JSON value",
    ),
    ({'extra': {'a': float('nan')}}, UsageError, 'is no JSON value'),
  ],
)
def test_bad_arguments(pruned, tmp_path, options, error, message):
  with pytest.raises(error, match=message):
    export.export(pruned, tmp_path / 'out', **options)
  assert list(tmp_path.iterdir()) == []


def test_modes_of_training_are_not_exported(pruned, tmp_path):
  module = pruned.module.clone(attention_modes=('skip', 'identity', 'full'))
  with pytest.raises(ModelError, match="block 0 is in mode 'skip'"):
    export.export(pruned.replace(module=module), tmp_path / 'out')
  assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(pruned, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'thesis.tex').write_text('x')
  with pytest.raises(LambdaVitError, match='holds other files'):
    export.export(pruned, tmp_path / 'out')
  with pytest.raises(LambdaVitError, match='is a file'):
    export.export(pruned, tmp_path / 'out' / 'thesis.tex')
  assert [p.name for p in tmp_path.rglob('*')] == ['out', 'thesis.tex']


def test_a_link_stays_a_link(pruned, tmp_path):
  """What it points to holds the export, again and again."""
  real, link = tmp_path / 'disk' / 'real', tmp_path / 'link'
  real.mkdir(parents=True)
  link.symlink_to(real)
  for _ in range(2):
    export.export(pruned, link, formats='orbax')
    assert link.is_symlink()
    assert (real / 'model.json').exists()
    assert [p.name for p in real.parent.iterdir()] == ['real']
    assert load_export(link).module == pruned.module


def test_the_current_folder_is_not_replaced(pruned, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(LambdaVitError, match='is the current folder'):
    export.export(pruned, '.', formats='orbax')
  assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_one(pruned, tmp_path, monkeypatch):
  out = tmp_path / 'out'
  export.export(pruned, out, formats=FILES)

  def writes_nonsense(directory, source):
    wrong = dataclasses.replace(source, stored=scaled(source.stored, 2))
    entry.write(directory, wrong)

  entry = FORMATS['safetensors']
  wrong = dataclasses.replace(entry, write=writes_nonsense)
  monkeypatch.setitem(FORMATS, 'safetensors', wrong)
  with pytest.raises(CheckpointError, match='logits of safetensors differ'):
    export.export(scaled(pruned, 1.5), out, formats=FILES)
  assert_same(load_export(out).params, pruned.params)
  assert [path.name for path in tmp_path.iterdir()] == ['out']
  broken = pruned.replace(
    params=pruned.params | {'cls_token': pruned.params['cls_token'] * np.nan}
  )
  with pytest.raises(ModelError, match='NaN or infinite logits'):
    export.export(broken, out, formats=FILES)
  assert_same(load_export(out).params, pruned.params)


def test_a_kill_between_the_renames_is_mended(pruned, tmp_path, monkeypatch):
  out = tmp_path / 'out'
  export.export(pruned, out, formats=())
  # Where a kill between the two renames leaves things.
  out.rename(tmp_path / '.out.previous')

  def fails(*arguments):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(export, '_write_formats', fails)
  with pytest.raises(LambdaVitError, match='No space left on device'):
    export.export(pruned, out, formats=())
  assert_same(load_export(out).params, pruned.params)


def test_an_export_takes_over_an_older_one(pruned, tmp_path):
  out = tmp_path / 'out'
  export.export(pruned, out, formats=())
  export.export(scaled(pruned, 1.5), out, formats=())
  assert_same(load_export(out).params, scaled(pruned, 1.5).params)
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_onnx_without_the_extra_says_how(pruned, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'onnx', None)
  with pytest.raises(LambdaVitError, match=r'pip install .*\[onnx\]'):
    export.export(pruned, tmp_path / 'out', formats=('onnx',))
  assert list(tmp_path.iterdir()) == []


def test_missing_or_damaged_exports(exported, tmp_path, pruned):
  with pytest.raises(CheckpointError, match=r'model\.json is missing'):
    load_export(tmp_path)
  folder, _ = exported
  fields = json.loads((folder / 'model.json').read_text())
  (tmp_path / 'model.json').write_text(json.dumps(fields))
  with pytest.raises(CheckpointError, match='params: missing'):
    load_export(tmp_path)
  shutil.copytree(folder / 'params', tmp_path / 'params')
  assert_same(load_export(tmp_path).params, pruned.params)
  # Modes that the parameters do not have, under a digest that fits.
  fields |= {'attention_modes': ['full', 'full', 'full'], 'removed_layers': []}
  fields = digests.seal(fields)
  (tmp_path / 'model.json').write_text(json.dumps(fields))
  with pytest.raises(CheckpointError, match='not the parameters that model'):
    load_export(tmp_path)
  (tmp_path / 'model.json').write_text('{"variant":')
  with pytest.raises(CheckpointError, match='not readable as JSON'):
    load_export(tmp_path)


@pytest.mark.parametrize(
  'change',
  [
    {'variant': '../../etc/passwd'},
    {'variant': ['x']},
    {'num_classes': -1},
    {'num_classes': True},
    {'num_classes': 10**12},
    {'norm_eps': [1e-6] * 3},
    {'norm_eps': [1e-6, -1.0, 1e-6, 1e-6]},
    {'norm_eps': [1e-6, float('inf'), 1e-6, 1e-6]},
    {'norm_eps': ['__import__("os")'] * 4},
    {'attention_modes': ['full'] * 2},
    {'attention_modes': ['full', 'eval', 'full']},
    {'attention_modes': ['identity'] * 3},
    {'attention_modes': 3},
    {'architecture': {'depth': 10**9}},
    {'architecture': {'embed_dim': 25}},
    {'architecture': {'activation': 'os.system'}},
    {'architecture': {'__class__': 1}},
    {'architecture': []},
    {'compensation': 'yes'},
    {'quantization': 'int2'},
    {'quantization': ['weights']},
    {'class_names': 'abcdefghij'},
    {'class_names': ['a']},
    {'class_names': [1] * 10},
    {'class_names': ['a', *'abcdefghi']},
    {'removed_layers': [0]},
    {'image_size': [16, 16]},
    {'preprocessing': {}},
    {'preprocessing': None},
  ],
  ids=str,
)
def test_hostile_descriptions_are_one_line(pruned, change):
  fields = json.loads(json.dumps(describe(pruned))) | change
  with pytest.raises(CheckpointError) as error:
    rebuild(fields, 'model.json')
  assert str(error.value).startswith('model.json: ')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name, value',
  [
    ('image_size', [0, 8]),
    ('image_size', [2**40, 8]),
    ('image_size', [9, 8]),
    ('mean', []),
    ('std', [0.0]),
    ('std', [-0.5]),
    ('std', [0.5, 0.5]),
    ('mean', ['0.5']),
    ('mean', [True]),
    ('crop_ratio', '1'),
    ('image_size', [8, 8, 8]),
    ('crop_ratio', float('nan')),
    ('interpolation', 'lanczos; rm'),
  ],
)
def test_hostile_preprocessing(pruned, name, value):
  fields = json.loads(json.dumps(describe(pruned)))
  fields['preprocessing'][name] = value
  with pytest.raises(CheckpointError, match=r'^model\.json: '):
    rebuild(fields, 'model.json')


@pytest.mark.parametrize('fields', [None, [], 'x', 3, {}], ids=str)
def test_descriptions_that_are_none(fields):
  with pytest.raises(CheckpointError, match=r'^model\.json: '):
    rebuild(fields, 'model.json')


def test_the_report_is_a_dict_that_shows_as_a_table(exported):
  folder, report = exported
  lines = repr(report).splitlines()
  assert len(lines) <= 20
  for name in ('params', 'model.safetensors', 'model.stablehlo'):
    (line,) = [line for line in lines if line.split()[0] == name]
    assert f'{report["bytes"][name]:,}' in line
  assert f'{report["differences"]["stablehlo"]:.1e}' in repr(report)
  # `model.json` holds the same, as plain JSON.
  fields = json.loads((folder / 'model.json').read_text())
  assert json.loads(json.dumps(report)).items() <= fields.items()


def test_the_table_has_the_difference_of_every_format():
  differences = {name: 10.0**-n for n, name in enumerate(FORMATS)}
  files = ('params', 'model.safetensors', 'config.json', 'model.stablehlo')
  files += ('model.onnx', 'model.xml', 'model.bin', 'transformers')
  report = export.ExportReport(
    differences=differences, bytes=dict.fromkeys(files, 7), warnings=[]
  )
  shown = {row[0]: row[2] for row in report.table().rows}
  assert shown.pop('config.json') == shown.pop('model.bin') == ''
  assert sorted(map(float, shown.values())) == sorted(differences.values())


def test_static_arithmetic_is_of_int8():
  """With another dtype the calibration was left out without a word."""
  with pytest.raises(UsageError, match=r'=static:1 is of int8, and .*=float32'):
    export.check_settings(('onnx',), 'float32', False, 'static:1')
  with pytest.raises(UsageError, match=r'=dynamic is of int8, and .*=float32'):
    export.check_settings((), 'float32', False, 'dynamic')


@pytest.mark.parametrize('value', ['dynamic:0.1', 'weights:', 'weights:0.3'])
@pytest.mark.parametrize('dtype', ['int8', 'float32'])
def test_an_accepted_loss_is_of_static_arithmetic(value, dtype):
  with pytest.raises(UsageError, match='only measured with static'):
    export.check_settings((), dtype, False, value)


@pytest.mark.parametrize(
  'half, names', [(True, ['openvino_bfloat16']), (False, [])]
)
def test_what_openvino_computes_by_itself_is_compared(half, names, monkeypatch):
  opened = []
  monkeypatch.setattr(processor, 'has_bfloat16', lambda: half)
  monkeypatch.setattr(openvino_ir, 'read', lambda *a: opened.append(a))
  source = types.SimpleNamespace(calibration=None)
  folder = epath.Path('out')
  assert list(FORMATS['openvino'].others(folder, source)) == names
  assert opened == [(folder / 'model.xml', 'bf16')] * len(names)


def test_a_new_format_is_one_entry(pruned, tmp_path, monkeypatch):
  """A format that is not ours: written, checked, listed and warned about."""

  def write(directory, source):
    (directory / 'model.echo').write_text(source.dtype)

  entry = Format(
    write=write,
    read=lambda directory: pruned,
    warnings=lambda source, differences: [f'echo: {differences["echo"]}'],
    int8_arithmetic=('dynamic',),
  )
  monkeypatch.setitem(FORMATS, 'echo', entry)
  report = export.export(pruned, tmp_path / 'out', formats=('echo',))
  assert report['differences'] == {'orbax': 0.0, 'echo': 0.0}
  assert report['warnings'] == ['echo: 0.0']
  fields = json.loads((tmp_path / 'out' / 'model.json').read_text())
  assert fields['formats'] == ['orbax', 'echo']
  assert 'model.echo' in fields['files']
  # One that computes something else is refused.
  wrong = dataclasses.replace(entry, read=lambda directory: scaled(pruned, 2))
  monkeypatch.setitem(FORMATS, 'echo', wrong)
  with pytest.raises(CheckpointError, match='logits of echo differ'):
    export.export(pruned, tmp_path / 'out', formats=('echo',))
  with pytest.raises(UsageError, match=r'format echo: .*; take dynamic'):
    export.check_settings(('echo',), 'int8', False, 'weights')
