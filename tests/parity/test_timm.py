"""Comparison with timm (extra `[parity]`): real variants, real files."""

import argparse
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import timm
import timm.layers
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core.errors import CheckpointError, ModelError
from lambda_vit_jax.exporters import export, pytorch
from lambda_vit_jax.models import resampling
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.edits import narrow_mlps, prune
from lambda_vit_jax.models.macs import count_parameters
from lambda_vit_jax.models.model import Model, create_model
from lambda_vit_jax.models.variants import VARIANTS, get_variant
from tests.parity.make_golden import run, timm_model
from tests.support.family_members import synthetic_arrays, synthetic_images

pytestmark = pytest.mark.parity

# For twelve blocks and more in float32.
TOLERANCE = 1e-4

# One variant of every family, at two image sizes each.
FAMILIES = (
  ('vit_tiny_patch16_224', (224, 160)),
  ('vit_small_patch8_224', (224, 64)),
  ('vit_small_patch32_384', (384, 224)),
  ('vit_base_patch16_224', (224, 96)),
  ('vit_base_patch16_224.mae', (224, 64)),
  ('vit_large_patch14_224', (224, 56)),
  ('deit_small_patch16_224', (224, 256)),
  ('deit_base_distilled_patch16_224', (224, 64)),
  ('deit3_small_patch16_224', (224, 160)),
  ('vit_small_patch14_dinov2', (518, 112)),
  ('vit_small_patch14_reg4_dinov2', (518, 112)),
  ('vit_base_patch16_clip_224', (224, 96)),
  ('vit_base_patch16_clip_quickgelu_224', (224, 96)),
  ('vit_base_patch16_siglip_224', (224, 96)),
  ('vit_base_patch32_clip_quickgelu_224', (224, 96)),
  ('vit_base_patch32_clip_224', (224, 160)),
  ('vit_small_patch16_dinov3', (256, 160)),
  ('vit_small_plus_patch16_dinov3_qkvb', (256, 160)),
  ('eva02_tiny_patch14_336', (336, 112)),
  ('eva02_base_patch14_224', (224, 112)),
  ('beit_base_patch16_224', (224, 160)),
  ('beitv2_base_patch16_224', (224, 96)),
  ('vit_base_patch32_siglip_gap_256', (256, 160)),
)

# Of twelve MLPs of width 768 one is gone, one has a third and one 64 neurons.
NARROW = {0: (), 1: range(0, 768, 3), 5: range(64)}

TIMM_NAMES = sorted(name for name in VARIANTS if not VARIANTS[name].timm_name)


def architecture(name: str) -> str:
  return name.split('.')[0]


def arguments(name: str) -> dict:
  variant = VARIANTS[name]
  return {
    'model_name': architecture(name),
    'img_size': variant.image_size,
    'num_classes': variant.num_classes,
  }


def assert_close(found, reference):
  bound = TOLERANCE * max(1.0, float(np.abs(reference).max()))
  np.testing.assert_allclose(found, reference, rtol=0, atol=bound)


def state_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
  return {n: tuple(value.shape) for n, value in model.state_dict().items()}


@pytest.mark.parametrize('name', TIMM_NAMES)
def test_variants_agree_with_timm(name):
  variant = VARIANTS[name]
  with torch.device('meta'):
    model = timm.create_model(
      architecture(name), num_classes=variant.num_classes
    )
  # Of the weights that we name: timm's own choice may need another crop.
  tag = variant.weights.rpartition('/')[2].partition('.')[2]
  own = f'{architecture(name)}.{tag}' if tag else name
  config = timm.models.get_pretrained_cfg(own)
  module = make_module(variant)
  params = abstract_params(module)
  assert count_parameters(params) == sum(p.numel() for p in model.parameters())
  assert (3, variant.image_size, variant.image_size) == config.input_size
  assert variant.num_classes == config.num_classes
  assert variant.mean == tuple(config.mean)
  assert variant.std == tuple(config.std)
  assert variant.crop_ratio == config.crop_pct
  assert variant.interpolation == config.interpolation
  assert variant.norm_eps == model.blocks[0].norm1.eps
  assert variant.num_heads == model.blocks[0].attn.num_heads
  # We name none that need another crop.
  if config.hf_hub_id and config.crop_mode == 'center':
    assert variant.weights == f'hf-hub:{config.hf_hub_id}'


@pytest.mark.parametrize(
  'name', [name for name in TIMM_NAMES if '.' not in name]
)
def test_tags_agree_with_timm(name):
  known = timm.list_models(f'{name}.*', pretrained=True)
  # Of one architecture timm has no weights.
  assert known or not VARIANTS[name].weights
  for full in known:
    config = timm.models.get_pretrained_cfg(full)
    if config.crop_mode != 'center':
      # We have no other crop, so these weights have no name here.
      with pytest.raises(ModelError, match='unknown tag'):
        get_variant(full)
      continue
    variant = get_variant(full)
    assert variant.mean == tuple(config.mean)
    assert variant.std == tuple(config.std)
    assert variant.crop_ratio == config.crop_pct
    assert variant.interpolation == config.interpolation
    assert variant.num_classes == config.num_classes
    assert (3, variant.image_size, variant.image_size) == config.input_size


# Of timm's own resampling of BEiT's bias tables, under newer PyTorch.
@pytest.mark.filterwarnings('ignore:Using a non-tuple sequence:UserWarning')
@pytest.mark.filterwarnings('ignore:torch.searchsorted:UserWarning')
@pytest.mark.parametrize('name, sizes', FAMILIES, ids=lambda value: str(value))
def test_logits_and_blocks(name, sizes, tmp_path):
  shapes = state_shapes(timm.create_model(**arguments(name)))
  arrays = synthetic_arrays(shapes)
  path = tmp_path / 'model.safetensors'
  save_file(arrays, path)
  for size in sizes:
    images = synthetic_images(size)
    expected = run(timm_model(arguments(name), size, arrays), images)
    model = load_pretrained(path, variant=name, image_size=size)
    with jax.default_matmul_precision('highest'):
      logits, taps = model.apply(images)
    assert_close(logits, expected['logits'])
    for index in range(model.depth):
      block = f'block{index:02d}'
      assert_close(taps[block]['output'], expected[block])


@pytest.mark.parametrize('target', [(5, 7), (7, 7), (20, 12), (14, 28)])
@pytest.mark.parametrize('prefix', [0, 1, 5])
def test_position_grid_is_resized_like_timm(target, prefix, rng):
  source = (14, 14)
  positions = rng.normal(size=(1, 14 * 14 + prefix, 8)).astype(np.float32)
  expected = timm.layers.resample_abs_pos_embed(
    torch.from_numpy(positions),
    new_size=list(target),
    old_size=list(source),
    num_prefix_tokens=prefix,
  )
  found = resampling.resize_positions(positions, source, target, prefix)
  # float32 in PyTorch, float64 here.
  np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


AVERAGE = {'pooling': 'avg', 'norm_before_pool': False}


def pruned_model(name: str = 'vit_tiny_patch16_224', **options) -> Model:
  model = create_model(name, num_classes=10, image_size=64, **options)
  return prune(model, (1, 3, 4, 6, 9))


def images_and_logits(model: Model) -> tuple[np.ndarray, np.ndarray]:
  images = synthetic_images(model.module.image_size[0])
  with jax.default_matmul_precision('highest'):
    return images, np.asarray(model(images))


def timm_logits(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
  return run(model.eval(), images)['logits']


@pytest.mark.parametrize('kept', [{}, NARROW], ids=['whole', 'narrow'])
@pytest.mark.parametrize(
  'name',
  ['vit_tiny_patch16_224', 'deit3_small_patch16_224'],
)
def test_stock_timm_loads_a_zero_filled_export(name, kept, tmp_path):
  model = narrow_mlps(pruned_model(name), kept)
  images, logits = images_and_logits(model)
  report = export.export(
    model, tmp_path / 'out', formats=('safetensors',), zero_fill=True
  )
  config = json.loads((tmp_path / 'out/config.json').read_text())
  stock = timm.create_model(
    config['architecture'],
    num_classes=config['num_classes'],
    **config['model_args'],
  )
  state = load_file(tmp_path / 'out/model.safetensors')
  stock.load_state_dict(state, strict=True)
  # The stream of a fresh model has a variance near 1e-3, far below the 0.1
  # from which 1e-4 is promised: the measured difference, and rounding.
  bound = 2 * report['differences']['stock_epsilon'] + TOLERANCE
  assert_difference(timm_logits(stock, images), logits, bound)
  # timm's own way to open the folder.
  stock = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True)
  assert_difference(timm_logits(stock, images), logits, bound)
  # With the epsilons that config.json lists it is the same function.
  set_epsilons(stock, config['norm_eps'])
  assert_difference(timm_logits(stock, images), logits, TOLERANCE)


def assert_difference(found, reference, bound):
  scale = max(1.0, float(np.abs(reference).max()))
  np.testing.assert_allclose(found, reference, rtol=0, atol=bound * scale)


def set_epsilons(model: torch.nn.Module, norm_eps: list[float]) -> None:
  for block, epsilon in zip(model.blocks, norm_eps[:-1], strict=True):
    for norm in (block.norm1, block.norm2):
      if hasattr(norm, 'eps'):
        norm.eps = epsilon
  model.norm.eps = norm_eps[-1]


@pytest.mark.parametrize(
  'name',
  [
    'vit_tiny_patch16_224',
    'vit_small_plus_patch16_dinov3_qkvb',
    'eva02_tiny_patch14_336',
  ],
)
def test_stock_timm_loads_equally_narrow_mlps(name, tmp_path):
  spec = get_variant(name)
  model = create_model(name, num_classes=10, image_size=4 * spec.patch_size)
  model = narrow_mlps(
    model, dict.fromkeys(range(12), range(0, spec.hidden_dim, 2))
  )
  images, logits = images_and_logits(model)
  export.export(model, tmp_path / 'out', formats='safetensors')
  config = json.loads((tmp_path / 'out/config.json').read_text())
  stock = timm.create_model(
    config['architecture'],
    num_classes=config['num_classes'],
    **config['model_args'],
  )
  state = load_file(tmp_path / 'out/model.safetensors')
  stock.load_state_dict(state, strict=True)
  assert_difference(timm_logits(stock, images), logits, TOLERANCE)
  assert sum(p.numel() for p in stock.parameters()) == model.num_parameters


def test_own_small_variant_opens_in_timm(tmp_path):
  model = create_model('vit_mini_patch2_8')
  model = prune(model, (0, 2))
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
  export.export(
    model, tmp_path / 'out', formats=('safetensors',), zero_fill=True
  )
  stock = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True)
  assert_difference(timm_logits(stock, images), np.asarray(model(images)), 1e-3)


@pytest.mark.parametrize('before', [False, True])
def test_stock_timm_loads_average_pooling(before, tmp_path):
  model = create_model(
    'vit_small_patch14_reg4_dinov2',
    num_classes=10,
    image_size=56,
    pooling='avg',
    norm_before_pool=before,
  )
  images, logits = images_and_logits(model)
  export.export(model, tmp_path / 'out', formats=('safetensors',))
  stock = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True)
  assert_difference(timm_logits(stock, images), logits, TOLERANCE)


def test_stock_timm_loads_a_network_without_some_blocks(tmp_path):
  """Nothing but another depth: every name and every number is timm's."""
  model = create_model('vit_tiny_patch16_224', num_classes=10, image_size=64)
  short = lv.drop_blocks(model, (4, 5, 9))
  images, logits = images_and_logits(short)
  export.export(short, tmp_path / 'out', formats=('safetensors',))
  stock = timm.create_model(
    'vit_tiny_patch16_224', num_classes=10, img_size=64, depth=9
  )
  state = load_file(tmp_path / 'out/model.safetensors')
  stock.load_state_dict(state, strict=True)
  assert_difference(timm_logits(stock, images), logits, TOLERANCE)
  stock = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True)
  assert_difference(timm_logits(stock, images), logits, TOLERANCE)


@pytest.mark.parametrize('kept', [{}, NARROW], ids=['whole', 'narrow'])
@pytest.mark.parametrize('options', [{}, AVERAGE], ids=['token', 'avg'])
def test_compact_export_in_timm_by_the_loader(options, kept, tmp_path):
  model = narrow_mlps(pruned_model(**options), kept)
  images, logits = images_and_logits(model)
  export.export(model, tmp_path / 'out', formats=('safetensors',))
  stock = pytorch.load(tmp_path / 'out')
  assert_difference(timm_logits(stock, images), logits, TOLERANCE)
  assert sum(p.numel() for p in stock.parameters()) == model.num_parameters


@pytest.mark.parametrize(
  'inputs',
  [
    ('token',),
    ('token', 'neighbours', 'mixing'),
    ('token', 'mean', 'class_map', 'neighbours', 'positions', 'mixing'),
  ],
  ids='-'.join,
)
def test_affine_maps_in_timm_by_the_loader(tmp_path, inputs):
  model = create_model('vit_tiny_patch16_224', num_classes=10, image_size=64)
  # More samples (images of 17 tokens) than inputs of the map.
  several = np.random.default_rng(0).normal(size=(64, 64, 64, 3))
  model = lv.linearize(
    model, several.astype(np.float32), (0, 2), inputs=inputs, ridge=0.1
  )
  images, logits = images_and_logits(model)
  export.export(model, tmp_path / 'out', formats=('safetensors',))
  stock = pytorch.load(tmp_path / 'out')
  assert_difference(timm_logits(stock, images), logits, TOLERANCE)


@pytest.mark.parametrize(
  'options, bound',
  [
    ({'zero_fill': True}, TOLERANCE),
    # Of the network that the export holds, whose weights were rounded alike.
    ({'dtype': 'int8'}, TOLERANCE),
    # Eight bits of mantissa, against float32.
    ({'dtype': 'bfloat16'}, 0.05),
  ],
  ids=['zeros', 'int8', 'bfloat16'],
)
def test_other_storage_by_the_loader(options, bound, tmp_path):
  model = create_model('vit_tiny_patch16_224', num_classes=10, image_size=64)
  if 'zero_fill' not in options:
    several = np.random.default_rng(0).normal(size=(64, 64, 64, 3))
    several = several.astype(np.float32)
    model = lv.linearize(model, several, (0,), ridge=0.1)
  model = prune(model, (2,))
  images, _ = images_and_logits(model)
  export.export(model, tmp_path / 'out', formats=('safetensors',), **options)
  expected = np.asarray(lv.load_export(tmp_path / 'out')(images))
  stock = pytorch.load(tmp_path / 'out')
  assert_difference(timm_logits(stock, images), expected, bound)


@pytest.mark.filterwarnings('error')
def test_merging_is_not_left_out_without_a_word(tmp_path):
  model = create_model('vit_tiny_patch16_224', num_classes=10, image_size=64)
  merged = lv.merge_tokens(model, 2)
  export.export(merged, tmp_path / 'out', formats=('safetensors',))
  with pytest.raises(UserWarning, match='tokens are not merged here'):
    pytorch.load(tmp_path / 'out')


def test_deit_pth_is_read_without_running_it(tmp_path):
  arrays = synthetic_arrays(
    state_shapes(timm.create_model('deit_tiny_patch16_224'))
  )
  state = {name: torch.from_numpy(value) for name, value in arrays.items()}
  path = tmp_path / 'deit.pth'
  torch.save({'model': state}, path)
  model = load_pretrained(path, variant='deit_tiny_patch16_224')
  kernel = model.params['block03']['attn']['qkv']['kernel']
  np.testing.assert_array_equal(kernel, arrays['blocks.3.attn.qkv.weight'].T)


def test_original_deit3_names(tmp_path):
  name = 'deit3_small_patch16_224'
  arrays = synthetic_arrays(state_shapes(timm.create_model(name)))
  state = {
    key.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): (
      torch.from_numpy(value)
    )
    for key, value in arrays.items()
  }
  path = tmp_path / 'deit3.pth'
  torch.save({'model': state}, path)
  model = load_pretrained(path)
  assert model.variant == name
  np.testing.assert_array_equal(
    model.params['block00']['ls2']['gamma'], arrays['blocks.0.ls2.gamma']
  )


def test_the_documented_lines_convert_a_pth(tmp_path, monkeypatch):
  network = timm.create_model('deit3_small_patch16_224', img_size=32).eval()
  # Weights beside something that could run code, and a shared tensor.
  state = {
    name.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): value
    for name, value in network.state_dict().items()
  }
  state['head.weight'] = state['head.weight'].t().contiguous().t()
  content = {'model': state, 'args': Hostile(tmp_path / 'ran')}
  torch.save(content, tmp_path / 'model.pth')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(CheckpointError, match=r'docs/pytorch\.md#convert-a-pth'):
    load_pretrained('model.pth')
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'pytorch.md'
  section = page.read_text().split('## Convert a .pth file')[1]
  exec(section.split('```python\n')[1].split('```')[0], {})
  images = synthetic_images(32)
  model = load_pretrained(
    'model.safetensors', variant='deit3_small_patch16_224'
  )
  assert_difference(model(images), timm_logits(network, images), TOLERANCE)


@pytest.mark.parametrize(
  'name, options',
  [
    ('vit_tiny_patch16_224', {}),
    ('vit_tiny_patch16_224', {'global_pool': 'avg'}),
    ('vit_tiny_patch16_224', {'act_layer': 'gelu_tanh'}),
    ('vit_base_patch16_siglip_224', {'depth': 2}),
    ('vit_base_patch16_siglip_gap_224', {'depth': 2, 'num_classes': 3}),
    ('vit_tiny_patch16_224', {'global_pool': 'avg', 'fc_norm': False}),
    ('vit_tiny_patch16_224', {'global_pool': 'token', 'fc_norm': True}),
    ('deit_small_distilled_patch16_224', {}),
    ('deit3_small_patch16_224', {}),
    ('vit_small_patch14_reg4_dinov2', {'num_classes': 7}),
    ('vit_base_patch16_clip_quickgelu_224', {'depth': 2, 'num_heads': 6}),
  ],
)
@pytest.mark.parametrize('form', ['object', 'bfloat16'])
def test_a_network_in_memory(name, options, form):
  size = 56 if 'patch14' in name else 48
  network = timm.create_model(name, img_size=size, **options).eval()
  if form == 'bfloat16':
    network = network.to(torch.bfloat16)
  model = load_pretrained(network)
  assert model.preprocessing.mean == tuple(network.pretrained_cfg['mean'])
  images = synthetic_images(size)
  found = model(images)
  assert_difference(found, timm_logits(network.float(), images), TOLERANCE)


@pytest.mark.parametrize(
  'name, options, words',
  [
    ('resnet18', {}, 'the ResNet: not a network'),
    ('vit_tiny_patch16_224', {'global_pool': 'max'}, "'max', but must be"),
    ('vit_tiny_patch16_224', {'qk_norm': True}, 'unexpected: blocks'),
    ('vit_tiny_patch16_224', {'act_layer': 'silu'}, 'SiLU'),
    ('vit_small_patch16_18x2_224', {}, 'ParallelThingsBlock'),
  ],
)
def test_other_networks_in_memory_are_refused(name, options, words):
  with pytest.raises(CheckpointError, match=re.escape(words)):
    load_pretrained(timm.create_model(name, **options))


class Hostile:
  """Unpickling it would make a file."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_harmless_types_beside_the_tensors_are_left_out(tmp_path):
  arrays = synthetic_arrays(
    state_shapes(timm.create_model('deit_tiny_patch16_224'))
  )
  state = {name: torch.from_numpy(value) for name, value in arrays.items()}
  content = {
    'model': state,
    'args': argparse.Namespace(lr=0.1, output=pathlib.Path('out')),
    'best': np.float64(0.8),
    'losses': np.zeros(3),
    'optimizer': {'state': {0: {'exp_avg': torch.zeros(3)}}},
  }
  torch.save(content, tmp_path / 'run.pth')
  model = load_pretrained(tmp_path / 'run.pth', variant='deit_tiny_patch16_224')
  np.testing.assert_array_equal(
    model.params['norm']['bias'], arrays['norm.bias']
  )


def test_a_hostile_pickle_does_not_run(tmp_path):
  target = tmp_path / 'ran'
  path = tmp_path / 'model.pth'
  torch.save({'model': Hostile(target)}, path)
  with pytest.raises(CheckpointError, match='without running'):
    load_pretrained(path, variant='deit_tiny_patch16_224')
  assert not target.exists()
