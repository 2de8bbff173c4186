"""Write `tests/golden/*.npz`: timm's results for one tiny model per family.

  python -m tests.parity.make_golden [FAMILY ...]

Needs the extra `[parity]`. A file holds the shapes of timm's state dict and,
per image size, the logits and the stream after every block, so that CI can
compare without PyTorch. Weights and images come from `family_members`.
"""

import json
import pathlib
import sys

import numpy as np
import timm
import timm.layers
import torch

from tests.support.family_members import (
  MEMBERS,
  Member,
  synthetic_arrays,
  synthetic_images,
)

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def timm_model(
  arguments: dict, image_size: int, arrays: dict[str, np.ndarray] | None
) -> torch.nn.Module:
  """A timm model, resized to another image size than that of its weights.

  Args:
    arguments: of `timm.create_model`; `img_size` is that of the weights.
    image_size: of the returned model.
    arrays: the weights at `img_size`; None keeps random ones.
  """
  model = timm.create_model(**arguments).eval()
  if arrays is not None:
    model.load_state_dict(
      {name: torch.from_numpy(array) for name, array in arrays.items()},
      strict=True,
    )
  if image_size == arguments['img_size']:
    return model
  state = model.state_dict()
  resized = timm.create_model(**(arguments | {'img_size': image_size})).eval()
  table = 'relative_position_bias_table'
  for name in [name for name in state if name.endswith(table)]:
    shape = resized.state_dict()[name].shape
    state[name] = timm.layers.resize_rel_pos_bias_table(
      state[name], resized.patch_embed.grid_size, shape
    )
  if 'pos_embed' in state:
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    state['pos_embed'] = timm.layers.resample_abs_pos_embed(
      state['pos_embed'],
      new_size=list(resized.patch_embed.grid_size),
      num_prefix_tokens=prefix,
    )
  resized.load_state_dict(state, strict=True)
  return resized


def run(model: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
  """Returns `logits`, and the stream after each block as `block00` …."""
  results = {}
  hooks = [
    block.register_forward_hook(
      lambda module, inputs, output, name=f'block{index:02d}': (
        results.__setitem__(name, output.numpy())
      )
    )
    for index, block in enumerate(model.blocks)
  ]
  with torch.no_grad():
    nchw = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    results['logits'] = model(nchw).numpy()
  for hook in hooks:
    hook.remove()
  return results


def make(member: Member) -> dict[str, np.ndarray]:
  """The contents of one golden file."""
  arguments = member.timm_arguments
  shapes = {
    name: tuple(value.shape)
    for name, value in timm.create_model(**arguments).state_dict().items()
  }
  arrays = synthetic_arrays(shapes)
  golden = {'shapes': np.array(json.dumps(shapes))}
  for size in member.image_sizes:
    model = timm_model(arguments, size, arrays)
    for name, value in run(model, synthetic_images(size)).items():
      golden[f'{size}/{name}'] = value
  return golden


def main(only: list[str]) -> None:
  """Writes the files of all members, or of those families alone."""
  GOLDEN.mkdir(exist_ok=True)
  for member in MEMBERS:
    if only and member.family not in only:
      continue
    np.savez_compressed(GOLDEN / f'{member.name}.npz', **make(member))


if __name__ == '__main__':
  main(sys.argv[1:])
