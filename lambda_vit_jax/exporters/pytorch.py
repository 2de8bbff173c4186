"""Load `model.safetensors` of an export into timm's `VisionTransformer`.

This file needs timm, PyTorch and safetensors, and nothing else of this package:
copy it to where the network runs (docs/pytorch.md).
"""

import functools
import json
import pathlib
import warnings
from typing import Any

import timm
import torch
from safetensors.torch import load_file


def load(folder: str | pathlib.Path) -> Any:
  """Builds the network of an export, with its weights.

  Args:
    folder: with `model.safetensors` and `config.json`.

  Returns:
    A `timm.models.VisionTransformer` without what was removed, in
    evaluation mode. Images are `[batch, channels, height, width]`.
  """
  folder = pathlib.Path(folder)
  config = json.loads((folder / 'config.json').read_text())
  model = timm.create_model(
    config['architecture'],
    num_classes=config['num_classes'],
    **config['model_args'],
  )
  state = load_file(folder / 'model.safetensors')
  for name in [name for name in state if name.endswith('_scale')]:
    # Of int8: a scale per row.
    weight = name.removesuffix('_scale')
    state[weight] = state[weight].float() * state.pop(name)
  modes = config['attention_modes']
  if config['zero_filled']:
    # What was removed is there, as zeros.
    modes = ['full' if mode == 'absent' else mode for mode in modes]
  if any(config.get('merge', ())):
    warnings.warn('tokens are not merged here: use model.onnx', stacklevel=2)
  for index, (block, mode, width, epsilon) in enumerate(
    zip(
      model.blocks,
      modes,
      config['mlp_dims'],
      # The final norm has the last one.
      config['norm_eps'][:-1],
      strict=True,
    )
  ):
    block.norm1.eps = block.norm2.eps = epsilon
    for name, layer in list(block.mlp.named_children()):
      if width and isinstance(layer, torch.nn.Linear):
        # As wide as in the file.
        shape = state[f'blocks.{index}.mlp.{name}.weight'].shape
        setattr(block.mlp, name, torch.nn.Linear(shape[1], shape[0]))
    if mode == 'absent' or not width:
      block.forward = functools.partial(_forward, block, mode, width)
    if mode == 'absent':
      block.norm1 = block.attn = block.ls1 = torch.nn.Identity()
    if mode == 'linear':
      _replace_attention(model, state, index)
    if not width:
      block.norm2 = block.mlp = block.ls2 = torch.nn.Identity()
  model.norm.eps = model.fc_norm.eps = config['norm_eps'][-1]
  model.load_state_dict(state, strict=True)
  return model.eval()


def _forward(block: Any, mode: str, width: int, x: Any, **_: Any) -> Any:
  """A block that lacks a half: the stream stays as it is there."""
  if mode != 'absent':
    x = x + block.ls1(block.attn(block.norm1(x)))
  if width:
    x = x + block.ls2(block.mlp(block.norm2(x)))
  return x


def _replace_attention(model: Any, state: dict[str, Any], index: int) -> None:
  """Puts an affine map in the place of an attention layer."""
  prefix = f'blocks.{index}.attn.'
  names = [name for name in state if name.startswith(prefix)]
  # As the other layers, whatever the file is stored in.
  arrays = {n.removeprefix(prefix): state.pop(n).float() for n in names}
  block = model.blocks[index]
  block.attn = _affine_map(
    arrays, model.num_prefix_tokens, model.patch_embed.grid_size
  )
  block.norm1 = torch.nn.LayerNorm(
    model.embed_dim, eps=block.norm2.eps, elementwise_affine=False
  )
  block.ls1 = torch.nn.Identity()


def _affine_map(
  arrays: dict[str, Any], leading: int, grid: tuple[int, int]
) -> Any:
  """A module of `W·z + b`; `leading` tokens come before the `grid` of patches."""
  linear = torch.nn.functional.linear

  class AffineMap(torch.nn.Module):
    def __init__(self) -> None:
      super().__init__()
      for name, array in arrays.items():
        self.register_buffer(name.replace('.', '_'), array, persistent=False)

    def part(self, x: Any, mean: Any, mixed: Any, own: str = '') -> Any:
      weight = getattr(self, f'{own}linear_weight')
      y = linear(x, weight, getattr(self, f'{own}linear_bias'))
      if mean is not None:
        y = y + linear(mean, getattr(self, f'{own}mean_weight'))
      if mixed is not None:
        y = y + linear(mixed, getattr(self, f'{own}mixed_weight'))
      return y

    def forward(self, x: Any, **_: Any) -> Any:
      mean = first = rest = None
      if hasattr(self, 'mean_weight'):
        mean = x.mean(1, keepdim=True)
      if hasattr(self, 'mixer_weights'):
        values = linear(x, self.values_weight, self.values_bias)
        values = values.unflatten(-1, (len(self.mixer_weights), -1))
        mixed = self.mixer_weights @ values.transpose(1, 2)
        mixed = mixed.transpose(1, 2).flatten(2)
        first, rest = mixed[:, :1], mixed[:, 1:]
      own = 'class_' if hasattr(self, 'class_linear_weight') else ''
      y = self.part(x[:, :1], mean, first, own)
      y = torch.cat([y, self.part(x[:, 1:], mean, rest)], 1)
      if hasattr(self, 'neighbours_weight'):
        patches = x[:, leading:].transpose(1, 2).unflatten(2, grid)
        around = torch.nn.functional.avg_pool2d(
          patches, 3, 1, 1, count_include_pad=False
        )
        around = around.flatten(2).transpose(1, 2)
        around = linear(around, self.neighbours_weight)
        y = y + torch.nn.functional.pad(around, (0, 0, leading, 0))
      if hasattr(self, 'positions_bias'):
        y = y + self.positions_bias
      return y

  return AffineMap()
