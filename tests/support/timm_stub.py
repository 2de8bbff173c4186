"""timm's ViT as far as docs/pytorch.md needs it: names and shapes, no PyTorch.

Written from timm's own constructor, so that a `config.json` that leaves an
argument out builds another network here as it does there.
"""

import types

import numpy as np
from safetensors.numpy import load_file

_SIZES = {'tiny': (192, 3), 'small': (384, 6), 'base': (768, 12)}


class Module:
  """Shapes of parameters in attributes, in the order of their names."""

  def shapes(self, prefix=''):
    found = {}
    for name, value in vars(self).items():
      if isinstance(value, Module):
        found |= value.shapes(f'{prefix}{name}.')
      elif isinstance(value, list):
        for index, module in enumerate(value):
          found |= module.shapes(f'{prefix}{name}.{index}.')
      elif isinstance(value, tuple):
        found[prefix + name] = value
    return found

  def named_children(self):
    pairs = vars(self).items()
    return [(n, module) for n, module in pairs if isinstance(module, Module)]

  def eval(self):
    return self

  def load_state_dict(self, state, strict):
    assert strict
    assert {name: a.shape for name, a in state.items()} == self.shapes()


class Linear(Module):
  def __init__(self, inputs, outputs):
    self.weight, self.bias = (outputs, inputs), (outputs,)


class Norm(Module):
  def __init__(self, width):
    self.weight, self.bias = (width,), (width,)
    self.eps = 1e-6


class Scale(Module):
  def __init__(self, width):
    self.gamma = (width,)


class Block(Module):
  def __init__(self, width, hidden, init_values):
    self.norm1, self.norm2 = Norm(width), Norm(width)
    self.attn, self.mlp = Module(), Module()
    self.attn.qkv = Linear(width, 3 * width)
    self.attn.proj = Linear(width, width)
    self.mlp.fc1 = Linear(width, hidden)
    self.mlp.fc2 = Linear(hidden, width)
    self.ls1 = Scale(width) if init_values else Module()
    self.ls2 = Scale(width) if init_values else Module()


def create_model(
  architecture,
  num_classes,
  *,
  img_size=224,
  patch_size=16,
  in_chans=3,
  global_pool='token',
  embed_dim=None,
  depth=12,
  num_heads=None,
  mlp_ratio=4.0,
  init_values=None,
  no_embed_class=False,
  reg_tokens=0,
  pre_norm=False,
  fc_norm=None,
):
  """`timm.create_model` of a plain `vit_SIZE_patch16_224`."""
  kind, size, patch, pixels = architecture.split('_')
  assert (kind, patch, pixels) == ('vit', 'patch16', '224')
  width, heads = _SIZES[size]
  width = embed_dim or width
  height, columns = np.broadcast_to(img_size, 2).tolist()
  patches = (height // patch_size) * (columns // patch_size)
  model = Module()
  model.num_heads = num_heads or heads
  model.cls_token = (1, 1, width)
  if reg_tokens:
    model.reg_token = (1, reg_tokens, width)
  slots = 0 if no_embed_class else 1 + reg_tokens
  model.pos_embed = (1, patches + slots, width)
  model.patch_embed, proj = Module(), Module()
  proj.weight = (width, in_chans, patch_size, patch_size)
  if pre_norm:
    model.norm_pre = Norm(width)
  else:
    proj.bias = (width,)
  model.patch_embed.proj = proj
  hidden = int(width * mlp_ratio)
  model.blocks = [Block(width, hidden, init_values) for _ in range(depth)]
  after = global_pool == 'avg' if fc_norm is None else fc_norm
  model.fc_norm = Norm(width) if after else Module()
  model.norm = Module() if after else Norm(width)
  if num_classes:
    model.head = Linear(width, num_classes)
  return model


def modules():
  """What the page imports, by name."""
  torch = types.ModuleType('torch')
  torch.nn = types.SimpleNamespace(Identity=Module, Linear=Linear)
  of_torch = types.ModuleType('safetensors.torch')
  of_torch.load_file = load_file
  timm = types.ModuleType('timm')
  timm.create_model = create_model
  return {'torch': torch, 'safetensors.torch': of_torch, 'timm': timm}
