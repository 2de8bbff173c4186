"""Modules of transformers, torchvision and OpenCLIP through their own files.

Each is made tiny, with random numbers in every parameter, and saved as its
program saves it. The folder alone has to give the same logits and the same
output of every block.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.exporters import export
from tests.support import transformers_members
from tests.support.family_members import synthetic_images

torch = pytest.importorskip('torch')
torchvision = pytest.importorskip('torchvision')
transformers = pytest.importorskip('transformers')
open_clip = pytest.importorskip('open_clip')

pytestmark = pytest.mark.parity

# float32 on both sides, summed in another order.
TOLERANCE = 1e-4

SMALL = {'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 3}
WIDE = {'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 2}


def randomised(module):
  """Every parameter away from its initial value, norms and scales around 1."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, value in module.named_parameters():
      normal = torch.randn(value.shape, generator=generator)
      scaled = value.ndim == 1 and name.endswith(('weight', 'lambda1'))
      value.copy_((1.0 if scaled else 0.0) + 0.2 * normal)
  return module.eval()


def assert_close(found, reference):
  reference = reference.detach().numpy()
  bound = TOLERANCE * max(1.0, float(np.abs(reference).max()))
  np.testing.assert_allclose(found, reference, rtol=0, atol=bound)


def run(model, size):
  images = synthetic_images(size)
  with jax.default_matmul_precision('highest'):
    logits, taps = model.apply(images)
  blocks = [taps[f'block{i:02d}']['output'] for i in range(model.depth)]
  return torch.from_numpy(images.transpose(0, 3, 1, 2)), logits, blocks


def saved(module, folder, **images):
  """What transformers writes, with a preprocessor_config.json if one is given."""
  module.save_pretrained(folder)
  if images:
    (folder / 'preprocessor_config.json').write_text(json.dumps(images))
  return load_pretrained(folder)


def made(name, sizes, **fields):
  """The configuration of a tiny network."""
  hidden = {'intermediate_size': 3 * sizes['hidden_size']}
  if name.startswith('Dinov2'):
    hidden = {}
  config = getattr(transformers, f'{name}Config')
  return config(patch_size=4, **sizes, **hidden, **fields)


CASES = {
  'vit': ('ViT', 'ViTForImageClassification', {'num_labels': 5}),
  'vit-headless': ('ViT', 'ViTModel', {}),
  'deit': ('DeiT', 'DeiTForImageClassificationWithTeacher', {'num_labels': 5}),
  'dinov2': ('Dinov2', 'Dinov2Model', {}),
  'dinov2-registers': ('Dinov2WithRegisters', 'Dinov2WithRegistersModel', {}),
  'clip': (
    'CLIPVision',
    'CLIPVisionModelWithProjection',
    {'projection_dim': 5},
  ),
  'siglip': ('SiglipVision', 'SiglipVisionModel', {}),
  'dinov3': ('DINOv3ViT', 'DINOv3ViTModel', {'num_register_tokens': 4}),
  'dinov3-gated': (
    'DINOv3ViT',
    'DINOv3ViTModel',
    {'num_register_tokens': 4, 'use_gated_mlp': True, 'hidden_act': 'silu'},
  ),
  'clip-gelu': ('CLIPVision', 'CLIPVisionModel', {'hidden_act': 'gelu'}),
}


@pytest.mark.parametrize('size', [16, 24])
@pytest.mark.parametrize('sizes', [SMALL, WIDE], ids=['small', 'wide'])
@pytest.mark.parametrize('case', CASES)
def test_transformers(case, sizes, size, tmp_path):
  name, architecture, fields = CASES[case]
  config = made(name, sizes, image_size=size, **fields)
  module = randomised(getattr(transformers, architecture)(config))
  model = saved(module, tmp_path)
  images, logits, blocks = run(model, size)
  with torch.no_grad():
    expected = module(images, output_hidden_states=True)
  for key in ('logits', 'image_embeds', 'pooler_output'):
    if key in expected and not (key == 'pooler_output' and name == 'ViT'):
      assert_close(logits, expected[key])
      break
  else:
    assert_close(logits, expected.last_hidden_state[:, 0])
  for found, reference in zip(blocks, expected.hidden_states[1:], strict=True):
    assert_close(found, reference)


def test_in_memory_names_of_transformers_5():
  config = made('ViT', SMALL, image_size=16, num_labels=5)
  module = randomised(transformers.ViTForImageClassification(config))
  with pytest.raises(Exception, match='arrays fit no variant'):
    load_pretrained(module.state_dict())


def test_images_are_prepared_as_transformers_says(tmp_path):
  config = made('ViT', SMALL, image_size=16, num_labels=5)
  model = saved(
    transformers.ViTForImageClassification(config),
    tmp_path,
    image_mean=[0.1, 0.2, 0.3],
    image_std=[0.4, 0.5, 0.6],
    size={'shortest_edge': 20},
    crop_size={'height': 16, 'width': 16},
    do_center_crop=True,
    resample=2,
  )
  found = model.preprocessing
  assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
  assert (found.crop_ratio, found.interpolation) == (0.8, 'bilinear')


@pytest.mark.parametrize('size', [32, 48])
def test_torchvision(size, tmp_path, monkeypatch):
  module = randomised(
    torchvision.models.VisionTransformer(
      image_size=size,
      patch_size=16,
      num_layers=12,
      num_heads=3,
      hidden_dim=192,
      mlp_dim=768,
      num_classes=5,
    )
  )
  path = tmp_path / 'vit.pth'
  torch.save(module.state_dict(), path)
  model = load_pretrained(path, variant='vit_tiny_patch16_224')
  images, logits, _ = run(model, size)
  assert_close(logits, module(images))
  assert model.preprocessing.crop_ratio == 0.875


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('quick', [True, False])
def test_open_clip(quick, whole, tmp_path):
  vision = {
    'image_size': 16,
    'layers': 2,
    'width': 128,
    'patch_size': 4,
    'head_width': 64,
  }
  network = randomised(
    open_clip.CLIP(
      embed_dim=5,
      vision_cfg=open_clip.CLIPVisionCfg(**vision),
      text_cfg=open_clip.CLIPTextCfg(
        context_length=4, vocab_size=9, width=16, heads=2, layers=2
      ),
      quick_gelu=quick,
    )
  )
  state = network if whole else network.visual
  torch.save(state.state_dict(), tmp_path / 'open_clip_pytorch_model.bin')
  config = {
    'model_cfg': {'embed_dim': 5, 'vision_cfg': vision, 'quick_gelu': quick},
    'preprocess_cfg': {'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6]},
  }
  path = pathlib.Path(tmp_path / 'open_clip_config.json')
  path.write_text(json.dumps(config))
  model = load_pretrained(tmp_path)
  assert model.preprocessing.mean == (0.1, 0.2, 0.3)
  images, logits, _ = run(model, 16)
  assert_close(logits, network.encode_image(images))


@pytest.mark.parametrize('case', transformers_members.CLASSES)
def test_transformers_loads_what_we_write(case, tmp_path):
  """Every array of its module is in the file, and none is left over."""
  model = transformers_members.member(case)
  export.export(model, tmp_path / 'out', formats=('transformers',))
  folder = tmp_path / 'out' / 'transformers'
  config = json.loads((folder / 'config.json').read_text())
  program = getattr(transformers, config['architectures'][0])
  module, report = program.from_pretrained(folder, output_loading_info=True)
  # The pooler of a plain ViT is no part of timm's network.
  missing = [x for x in report['missing_keys'] if not x.startswith('pooler.')]
  assert not missing
  assert not report['unexpected_keys']
  assert not report['mismatched_keys']
  images, logits, _ = run(model, 16)
  with torch.no_grad():
    found = module.eval()(images)
  keys = ('logits', 'image_embeds', 'pooler_output')
  if case == 'vit-headless':
    keys = ()
  expected = next((found[key] for key in keys if key in found), None)
  if expected is None:
    expected = found.last_hidden_state[:, 0]
  assert_close(logits, expected)
  transformers.AutoImageProcessor.from_pretrained(folder)
