"""`load_pretrained` from every source, and one line for bad weights."""

import contextlib
import json
import logging
import pathlib
import pickle
import sys
import types
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lambda_vit_jax.checkpoints import (
  convert,
  hub,
  orbax_store,
  transformers_config,
)
from lambda_vit_jax.checkpoints.description import describe, rebuild
from lambda_vit_jax.checkpoints.load import load_pretrained, load_stage
from lambda_vit_jax.core.errors import (
  CheckpointError,
  LambdaVitError,
  ModelError,
)
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.models.model import Model, create_model
from lambda_vit_jax.models.variants import VARIANTS
from tests.support.family_members import MEMBERS, google_arrays
from tests.support.trees import assert_same

NANO = 'vit_nano_patch2_8'


@pytest.fixture(scope='module')
def nano() -> Model:
  return create_model(NANO, seed=3)


@pytest.fixture
def arrays(nano) -> dict[str, np.ndarray]:
  return convert.encode(nano.params)


@pytest.fixture
def path(tmp_path, arrays) -> pathlib.Path:
  path = tmp_path / 'weights' / 'model.safetensors'
  path.parent.mkdir()
  save_file(arrays, path)
  return path


def message(error: pytest.ExceptionInfo) -> str:
  """The error's text, which must be one line."""
  text = str(error.value)
  assert '\n' not in text
  assert isinstance(error.value, LambdaVitError)
  return text


def refused(where, **options) -> str:
  with pytest.raises(LambdaVitError) as error:
    load_pretrained(where, **options)
  return message(error)


# --- what loads ---


def test_a_file_alone_is_known_by_its_shapes(nano, path):
  model = load_pretrained(path)
  assert model.variant == NANO
  assert model.preprocessing == nano.preprocessing
  assert_same(model.params, nano.params)
  assert all(
    isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.params)
  )


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(arrays, tmp_path, dtype):
  halves = {name: array.astype(dtype) for name, array in arrays.items()}
  save_file(halves, tmp_path / 'model.safetensors')
  model = load_pretrained(tmp_path)
  found = convert.encode(model.params)
  for name, half in halves.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], half.astype(np.float32))


def timm_config(**changes) -> dict:
  return {
    'architecture': NANO,
    'global_pool': 'token',
    'num_classes': 10,
    'pretrained_cfg': {
      'tag': 'some_tag',
      'input_size': [1, 8, 8],
      'mean': [0.25],
      'std': [0.75],
      'crop_pct': 0.9,
      'interpolation': 'bilinear',
    },
  } | changes


@pytest.mark.parametrize('given', ['file', 'folder'])
def test_config_json_beside_the_weights_is_read(nano, path, given):
  (path.parent / 'config.json').write_text(json.dumps(timm_config()))
  model = load_pretrained(path if given == 'file' else path.parent)
  assert model.variant == NANO
  preprocessing = model.preprocessing
  assert (preprocessing.mean, preprocessing.std) == ((0.25,), (0.75,))
  assert preprocessing.crop_ratio == 0.9
  assert preprocessing.interpolation == 'bilinear'
  assert_same(model.params, nano.params)


def test_config_json_without_preprocessing_is_said(path, nano, caplog):
  fields = timm_config(pretrained_cfg={'tag': 'some_tag'})
  (path.parent / 'config.json').write_text(json.dumps(fields))
  with caplog.at_level(logging.WARNING):
    model = load_pretrained(path)
  (record,) = caplog.records
  assert f'those of {NANO} are taken: mean (0.5,)' in record.getMessage()
  assert model.preprocessing == nano.preprocessing


def test_average_pooling_from_config_json(nano, arrays, tmp_path, images):
  config = timm_config(model_args={'global_pool': 'avg'})
  (tmp_path / 'config.json').write_text(json.dumps(config))
  for suffix in ('weight', 'bias'):
    arrays[f'fc_norm.{suffix}'] = arrays.pop(f'norm.{suffix}')
  save_file(arrays, tmp_path / 'model.safetensors')
  model = load_pretrained(tmp_path)
  assert model.module.pooling == 'avg'
  assert not model.module.norm_before_pool
  _, taps = model.apply(images)
  stream = np.asarray(taps['block02']['output'])[:, 1:].mean(axis=1)
  normal = (stream - stream.mean(axis=-1, keepdims=True)) / np.sqrt(
    stream.var(axis=-1, keepdims=True) + 1e-6
  )
  # Two float32 norms, whose scale and bias are still 1 and 0.
  np.testing.assert_allclose(taps['features'], normal, atol=1e-5)


def test_another_head_is_logged_in_one_line(path, nano, caplog):
  with caplog.at_level(logging.WARNING):
    model = load_pretrained(path, num_classes=7)
  (record,) = caplog.records
  assert 'head for 7 classes is newly initialised' in record.getMessage()
  assert model.num_classes == 7
  assert model.params['head']['kernel'].shape == (24, 7)
  np.testing.assert_array_equal(
    model.params['norm']['scale'], nano.params['norm']['scale']
  )


def test_no_head_gives_features(path, nano, images, caplog):
  model = load_pretrained(path, num_classes=0)
  assert not caplog.records
  assert 'head' not in model.params
  # The same program up to the head.
  features = nano.apply(images)[1]['features']
  np.testing.assert_allclose(model(images), features, atol=1e-6)


def test_another_image_size_resizes_the_positions(path, nano):
  model = load_pretrained(path, image_size=(12, 8))
  assert model.module.image_size == (12, 8)
  assert model.preprocessing.image_size == (12, 8)
  assert model.params['pos_embed'].shape == (1, 1 + 6 * 4, 24)
  np.testing.assert_array_equal(
    model.params['pos_embed'][:, 0], nano.params['pos_embed'][:, 0]
  )
  assert 'divisible by the patch size 2' in refused(path, image_size=9)


def test_weights_of_another_image_size_keep_it(tmp_path):
  model = create_model(NANO, image_size=12)
  save_file(convert.encode(model.params), tmp_path / 'model.safetensors')
  assert load_pretrained(tmp_path).module.image_size == (12, 12)


def tiny_google(tmp_path, monkeypatch):
  member = MEMBERS[0]
  monkeypatch.setitem(VARIANTS, member.name, member.variant)
  params, arrays = google_arrays(member, heads=3)
  return member, params, arrays, tmp_path / 'weights.npz'


def test_google_archive(tmp_path, monkeypatch):
  member, params, arrays, path = tiny_google(tmp_path, monkeypatch)
  np.savez(path, **arrays)
  assert_same(load_pretrained(path, variant=member.name).params, params)
  # A training checkpoint holds the optimizer's state as well.
  np.savez(
    path,
    **{f'opt/target/{name}': array for name, array in arrays.items()},
    **{'opt/state/step': np.int32(3)},
  )
  assert_same(load_pretrained(path, variant=member.name).params, params)


def test_google_archive_of_imagenet_21k_loses_its_old_head(
  tmp_path, monkeypatch, caplog
):
  member, params, arrays, path = tiny_google(tmp_path, monkeypatch)
  arrays['pre_logits/kernel'] = np.zeros((24, 24), np.float32)
  arrays['pre_logits/bias'] = np.zeros(24, np.float32)
  np.savez(path, **arrays)
  model = load_pretrained(path, variant=member.name)
  assert 'pre_logits' in caplog.text
  assert_same(model.params, {k: v for k, v in params.items() if k != 'head'})


def test_a_workdir_gives_its_newest_stage(tmp_path, nano):
  def save(stage, model):
    checkpointer = orbax_store.Checkpointer(tmp_path / 'checkpoints' / stage)
    meta = {'model': describe(model), 'has_ema': False}
    checkpointer.save(3, {'params': model.params}, meta)
    checkpointer.close()

  assert 'no weight file' in refused(tmp_path)
  (tmp_path / 'checkpoints' / 'pretrain').mkdir(parents=True)
  assert '`pretrain`' in refused(tmp_path)
  save('pretrain', nano)
  # Nothing finished of the next stage yet.
  (tmp_path / 'checkpoints' / 'dilute').mkdir()
  assert_same(load_pretrained(tmp_path).params, nano.params)
  pruned = prune(nano, (1,))
  save('dilute', pruned)
  model = load_pretrained(tmp_path)
  assert model.attention_modes == pruned.attention_modes
  assert_same(model.params, pruned.params)
  assert_same(load_stage(tmp_path, 'pretrain').params, nano.params)


def test_weights_that_come_with_the_package():
  model = load_pretrained('builtin:vit_mini_patch2_8_digits')
  assert (model.variant, model.num_classes) == ('vit_mini_patch2_8', 10)
  text = refused('builtin:vit_mini_patch2_8_digit')
  assert 'did you mean vit_mini_patch2_8_digits' in text


# --- what does not ---


def test_truncated_file(path):
  path.write_bytes(path.read_bytes()[:-100])
  assert 'not a complete safetensors file' in refused(path)
  path.write_bytes(b'')
  assert 'not a complete safetensors file' in refused(path)


def test_wrong_family_and_wrong_patch(path):
  with pytest.raises(CheckpointError) as error:
    load_pretrained(path, variant='vit_mini_patch4_32')
  text = message(error)
  assert 'missing: blocks.{3-11}' in text
  assert f'its arrays fit {NANO}' in text
  # The line has as many names as 300 characters hold beside the path.
  assert len(text) <= 300
  (note,) = error.value.__notes__
  assert 'blocks.0.attn.proj.weight is 24×24, expected 192×192' in note
  assert 'patch_embed.proj.weight is 24×1×2×2, expected 192×3×4×4' in note


def test_pruned_arrays_without_a_description(tmp_path, arrays):
  kept = {
    name: array
    for name, array in arrays.items()
    if not name.startswith(('blocks.1.attn', 'blocks.1.norm1'))
  }
  save_file(kept, tmp_path / 'model.safetensors')
  text = refused(tmp_path, variant=NANO)
  assert 'missing: blocks.1.attn.proj.bias, blocks.1.attn.proj.weight' in text


def test_damaged_numbers(arrays, tmp_path):
  arrays['head.bias'] = np.full(10, np.nan, np.float32)
  save_file(arrays, tmp_path / 'model.safetensors')
  assert 'NaN or infinite numbers in head.bias' in refused(tmp_path)


@pytest.mark.parametrize(
  'dtype, words',
  [
    (ml_dtypes.float8_e4m3fn, 'head.bias is F8_E4M3, whose scales we do not'),
    (ml_dtypes.float8_e5m2, 'head.bias is F8_E5M2, whose scales we do not'),
    (np.int8, 'head.bias is int8, expected floats'),
    (np.bool_, 'head.bias is bool, expected floats'),
  ],
)
def test_numbers_that_are_no_weights(arrays, tmp_path, dtype, words):
  arrays['head.bias'] = arrays['head.bias'].astype(dtype)
  save_file(arrays, tmp_path / 'model.safetensors')
  assert words in refused(tmp_path)


def test_many_missing_names_are_one_short_line(tmp_path, arrays):
  save_file({'a' * 10: arrays['head.bias']}, tmp_path / 'model.safetensors')
  with pytest.raises(CheckpointError) as error:
    load_pretrained(tmp_path / 'model.safetensors', variant=NANO)
  text = message(error)
  assert len(text.removeprefix(str(tmp_path))) < 300
  assert 'missing: blocks.{0-2}.attn.proj.bias, ' in text
  assert ' more; unexpected: aaaaaaaaaa' in text
  # `--debug` shows them all.
  (note,) = error.value.__notes__
  assert 'blocks.{0-2}.mlp.fc2.bias' in note


def test_the_names_of_deit3_are_read_from_any_file(tmp_path, arrays):
  model = create_model(NANO, layer_scale=0.5)
  named = {
    name.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): array
    for name, array in convert.encode(model.params).items()
  }
  assert 'blocks.0.gamma_1' in named
  save_file(named, tmp_path / 'model.safetensors')
  fields = timm_config(model_args={'init_values': 0.5})
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  assert_same(load_pretrained(tmp_path).params, model.params)


def test_a_folder_with_two_weight_files(path):
  (path.parent / 'other.safetensors').write_bytes(path.read_bytes())
  assert 'holds 2 weight files (model.safetensors, other' in refused(
    path.parent
  )


def test_shapes_that_fit_several_variants_name_them(tmp_path, monkeypatch):
  # These differ in their activation alone.
  alike = [member for member in MEMBERS if 'clip' in member.family]
  for member in alike:
    monkeypatch.setitem(VARIANTS, member.name, member.variant)
  params = abstract_params(make_module(alike[0].variant))
  params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), params)
  save_file(convert.encode(params), tmp_path / 'model.safetensors')
  text = refused(tmp_path)
  assert len(alike) == 2
  assert all(member.name in text for member in alike)
  assert 'say which' in text


@pytest.mark.parametrize(
  'config, words',
  [
    ({'architecture': 'resnet50'}, "unknown model variant 'resnet50"),
    ({}, 'names no `architecture`'),
    ([], 'the content is a list of 0, but must be an object'),
    ({'architecture': ['x']}, '`architecture` is a list of 1, but must be'),
    ({'model_args': {'class_token': False}}, 'needs a class token, which the'),
    ({'model_args': {'qk_norm': True}}, 'model_args.qk_norm is not supported'),
    ({'model_args': {'num_heads': -3}}, '`model_args.num_heads` is -3'),
    ({'model_args': {'num_heads': 5}}, '5 heads do not divide embed_dim 24'),
    ({'model_args': {'patch_size': '2'}}, "`model_args.patch_size` is '2'"),
    ({'model_args': {'fc_norm': 'yes'}}, "`model_args.fc_norm` is 'yes'"),
    ({'model_args': {'no_embed_class': 1}}, '`model_args.no_embed_class` is 1'),
    ({'model_args': [1]}, '`model_args` is a list of 1'),
    ({'global_pool': 'max'}, "`global_pool` is 'max', but must be one of"),
    ({'global_pool': 'map'}, 'missing: attn_pool.'),
    ({'global_pool': ['avg']}, '`global_pool` is a list of 1'),
    # One of the two alone, for other images.
    (
      {'pretrained_cfg': {'std': [0.5] * 24}},
      '1 channels by their mean and 24',
    ),
    ({'pretrained_cfg': 'x'}, "`pretrained_cfg` is 'x'"),
    *(
      ({'pretrained_cfg': timm_config()['pretrained_cfg'] | changes}, words)
      for changes, words in (
        ({'mean': 'x'}, "`pretrained_cfg.mean` is 'x', but must be a list of"),
        ({'mean': [0.5, 0.5]}, 'differ in length'),
        ({'mean': [0.5] * 3, 'std': [0.5] * 3}, '`mean` has 3 numbers for the'),
        ({'mean': [float('nan')]}, 'not readable as JSON'),
        ({'std': [-0.5]}, '`pretrained_cfg.std[0]` is -0.5'),
        ({'std': [0]}, '`pretrained_cfg.std[0]` is 0'),
        ({'std': [True]}, '`pretrained_cfg.std[0]` is true'),
        ({'std': ['0.5']}, "`pretrained_cfg.std[0]` is '0.5'"),
        ({'crop_pct': -0.9}, '`pretrained_cfg.crop_pct` is -0.9'),
        ({'crop_pct': 1e-5}, '`pretrained_cfg.crop_pct` is 1e-05'),
        ({'crop_pct': 7.0}, '`pretrained_cfg.crop_pct` is 7.0'),
        ({'crop_mode': 'squash'}, "`pretrained_cfg.crop_mode` is 'squash'"),
        ({'interpolation': 'nearest'}, 'but must be one of bicubic, bilinear'),
        ({'input_size': [1, -8, 8]}, '`pretrained_cfg.input_size[1]` is -8'),
        ({'input_size': [8, 8]}, '`pretrained_cfg.input_size` is a list of 2'),
        ({'input_size': [3, 8, 8]}, '`mean` has 1 numbers for the 3 channels'),
      )
    ),
  ],
)
def test_config_json_of_something_else(path, config, words):
  if config and 'architecture' not in config:
    config = timm_config(**config)
  (path.parent / 'config.json').write_text(json.dumps(config))
  assert words in refused(path)


def test_a_config_json_of_another_program_needs_the_variant(path, nano, caplog):
  (path.parent / 'config.json').write_text('{"model_type": "vit"}')
  assert 'say which it is with `variant`' in refused(path)
  model = load_pretrained(path, variant=NANO)
  assert_same(model.params, nano.params)
  (record,) = caplog.records
  assert f'left out; images are prepared as for {NANO}' in record.getMessage()


def test_config_json_contradicts_the_variant(path):
  (path.parent / 'config.json').write_text(json.dumps(timm_config()))
  text = refused(path, variant='vit_mini_patch2_8')
  assert f'describes a {NANO}' in text


def test_unknown_names_offer_the_nearest(tmp_path):
  text = refused('deit_smal_patch16_224')
  assert 'no such file or folder; did you mean deit_small_patch16' in text
  with pytest.raises(ModelError, match='did you mean deit_small_patch16_224'):
    load_pretrained(tmp_path, variant='deit_smal_patch16_224')
  assert 'did you mean hf-hub:timm/deit_small_patch16_224?' in refused(
    'timm/deit_small_patch16_224'
  )
  # No name is offered that was given.
  text = refused('vit_mini_patch2_8')
  assert "lv.create_model('vit_mini_patch2_8')" in text
  assert 'did you mean' not in text
  (tmp_path / 'notes.txt').write_text('x')
  assert 'not a weight file' in refused(tmp_path / 'notes.txt')


class Hostile:
  """Unpickling it would make a file."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_a_hostile_pickle_never_runs(tmp_path, monkeypatch):
  target = tmp_path / 'ran'
  payload = pickle.dumps({'model': Hostile(target)})
  path = tmp_path / 'model.pth'
  # PyTorch's form: a zip archive around a pickle. The real reader is tested
  # where PyTorch is (tests/parity).
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('archive/data.pkl', payload)
  monkeypatch.setitem(sys.modules, 'torch', None)
  text = refused(path, variant=NANO)
  assert "pip install 'lambda_vit_jax[torch]'" in text
  assert 'docs/pytorch.md#convert-a-pth-file' in text
  # Object arrays are pickles inside a .npz.
  path = tmp_path / 'model.npz'
  np.savez(path, cls=np.array([Hostile(target)], dtype=object))
  assert 'pickled objects' in refused(path, variant=NANO)
  path.write_bytes(path.read_bytes()[:40])
  assert 'not a complete .npz archive' in refused(path, variant=NANO)
  assert not target.exists()


def test_pth_goes_through_the_safe_reader_alone(tmp_path, monkeypatch):
  calls = []

  def load(path, **options):
    calls.append(options)
    raise RuntimeError('Weights only load failed')

  serialization = types.SimpleNamespace(
    get_unsafe_globals_in_checkpoint=lambda path: [],
    safe_globals=lambda types: contextlib.nullcontext(),
  )
  fake = types.SimpleNamespace(load=load, serialization=serialization)
  monkeypatch.setitem(sys.modules, 'torch', fake)
  path = tmp_path / 'model.pth'
  path.write_bytes(b'x')
  assert 'refused without running it' in refused(path, variant=NANO)
  assert calls == [{'map_location': 'cpu', 'weights_only': True}]


# --- the hub ---


class HfHubHTTPError(OSError):
  """The library's base error."""


class RepositoryNotFoundError(HfHubHTTPError):
  """A name that the hub does not know."""


class LocalEntryNotFoundError(FileNotFoundError):
  """Nothing in the cache, and no network."""


@pytest.fixture
def fake_hub(monkeypatch):
  """`huggingface_hub` without a network; `.answer` is what a file gives."""
  module = types.SimpleNamespace(
    errors=types.SimpleNamespace(HfHubHTTPError=HfHubHTTPError),
    asked=[],
  )

  def download(repository, file, revision=None):
    module.asked.append((repository, file, revision))
    return module.answer(file)

  module.hf_hub_download = download
  monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
  return module


def test_hub_models_are_the_folder_in_its_cache(fake_hub, path, nano):
  (path.parent / 'config.json').write_text(json.dumps(timm_config()))
  fake_hub.answer = lambda file: str(path.parent / file)
  model = load_pretrained(f'hf-hub:timm/{NANO}.tag@main')
  assert_same(model.params, nano.params)
  assert fake_hub.asked == [
    (f'timm/{NANO}.tag', 'config.json', 'main'),
    (f'timm/{NANO}.tag', 'model.safetensors', 'main'),
  ]


class EntryNotFoundError(HfHubHTTPError):
  """A repository without this file."""


@pytest.mark.parametrize('there', [True, False])
def test_how_images_are_prepared_is_fetched_too(there, fake_hub, path, nano):
  def answer(file):
    if not there and file not in ('config.json', 'model.safetensors'):
      raise EntryNotFoundError(file)
    return str(path.parent / file)

  (path.parent / 'config.json').write_text(json.dumps(timm_config()))
  fake_hub.answer = answer
  assert_same(load_pretrained('hf-hub:somebody/tiny').params, nano.params)
  assert [file for _, file, _ in fake_hub.asked][2:] == [
    'preprocessor_config.json',
    'open_clip_config.json',
  ]


@pytest.mark.parametrize(
  'name, repository',
  [
    ('deit_small_patch16_224', 'timm/deit_small_patch16_224.fb_in1k'),
    ('vit_small_patch16_224.dino', 'timm/vit_small_patch16_224.dino'),
  ],
)
def test_names_of_variants_are_the_hubs(name, repository, fake_hub, caplog):
  def answer(file):
    raise LocalEntryNotFoundError('x')

  fake_hub.answer = answer
  assert 'the hub cannot be reached' in refused(name)
  assert fake_hub.asked[0][0] == repository
  assert f'{name}: taken from hf-hub:{repository}' in caplog.text
  # Neither a name without weights nor an unknown tag asks the hub.
  fake_hub.asked.clear()
  assert 'no such file' in refused(NANO)
  assert 'no such file' in refused('vit_small_patch16_224.dinu')
  assert fake_hub.asked == []


@pytest.mark.parametrize(
  'error, words',
  [
    (LocalEntryNotFoundError('x'), 'the hub cannot be reached'),
    (RepositoryNotFoundError('x'), 'no such public model'),
  ],
)
def test_hub_errors_are_one_line(fake_hub, error, words):
  def answer(file):
    raise error

  fake_hub.answer = answer
  assert words in refused('hf-hub:timm/deit_tiny_patch16_224')


def test_hub_names_are_checked_before_the_network(fake_hub, monkeypatch):
  assert 'did you mean deit_tiny_patch16_224' in refused(
    'hf-hub:timm/deit_tini_patch16_224.fb_in1k'
  )
  assert 'write hf-hub:timm/NAME' in refused('hf-hub:../../etc/passwd')
  assert fake_hub.asked == []
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  text = refused('hf-hub:timm/deit_tiny_patch16_224')
  assert "pip install 'lambda_vit_jax[hub]'" in text
  assert not hub.is_hub_name('model.safetensors')


def test_missing_arrays_are_checkpoint_errors(tmp_path):
  with pytest.raises(CheckpointError, match='no such file'):
    load_pretrained(tmp_path / 'nothing.safetensors')


def test_images_are_not_enlarged_to_many_times_their_pixels():
  """A crop of 1e-5 would make a photograph of 800,000 pixels a side."""
  with pytest.raises(CheckpointError, match=r'x\.json: crops 8 of 81 pixels'):
    transformers_config.read_preprocessing(
      {'size': 81, 'crop_size': 8, 'do_center_crop': True}, 'x.json'
    )
  found = transformers_config.read_preprocessing(
    {'size': 80, 'crop_size': 8, 'do_center_crop': True}, 'x.json'
  )
  assert found['crop_ratio'] == pytest.approx(0.1)
  fields = describe(create_model('vit_nano_patch2_8'))
  fields['preprocessing'] |= {'crop_ratio': 1e-5}
  with pytest.raises(CheckpointError, match='crop_ratio'):
    rebuild(fields, 'x.json')
