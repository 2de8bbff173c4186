"""A tiny file of every layout that is read, and of many that are not.

`CASES` is what docs/layouts.md lists; docs/make_layouts.py loads each of them
and writes what happened.
"""

import dataclasses
import json
import logging
import pathlib
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import numpy as np
from safetensors.numpy import save_file

from lambda_vit_jax.checkpoints import convert, pickles
from lambda_vit_jax.checkpoints.layout_tables import LAYOUTS
from lambda_vit_jax.checkpoints.layouts import Layout
from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.variants import VARIANTS
from tests.support.family_members import MEMBERS, Member, synthetic_arrays

Arrays = dict[str, np.ndarray]

_BY_FAMILY = {
  member.family: member for member in MEMBERS if member.pooling != 'avg'
}
PLAIN = _BY_FAMILY['vit_tiny_patch16_224']

# Of each layout the family that its files are of.
_FAMILIES = {
  "transformers' SigLIP": 'vit_base_patch16_siglip_224',
  "big_vision's SigLIP": 'vit_base_patch16_siglip_224',
  "transformers' DINOv3": 'vit_small_patch16_dinov3',
  "transformers' DINOv3 (SwiGLU)": 'vit_small_plus_patch16_dinov3_qkvb',
  "Meta's DINOv3": 'vit_small_patch16_dinov3',
  "Meta's DINOv3 (SwiGLU)": 'vit_small_plus_patch16_dinov3_qkvb',
  "DeiT III's": 'deit3_small_patch16_224',
  "timm's EVA and BEiT": 'vit_small_patch16_dinov3',
  "Meta's DINOv2": 'vit_small_patch14_dinov2',
  "Meta's DINOv2 with registers": 'vit_small_patch14_reg4_dinov2',
  "transformers' DeiT": 'deit_small_distilled_patch16_224',
  "transformers' DINOv2": 'vit_small_patch14_dinov2',
  "transformers' DINOv2 with registers": 'vit_small_patch14_reg4_dinov2',
  "transformers' CLIP": 'vit_base_patch16_clip_224',
  'OpenCLIP': 'vit_base_patch16_clip_224',
}


def member_of(layout: Layout) -> Member:
  """The tiny model whose files have this layout."""
  member = _BY_FAMILY[_FAMILIES.get(layout.title, PLAIN.family)]
  headless = not any(target == 'head/kernel' for _, target, _ in layout.rules)
  return dataclasses.replace(member, num_classes=0) if headless else member


def params_of(member: Member) -> Params:
  """Parameters of a member, a function of their names."""
  expected = abstract_params(make_module(member.variant))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), expected)
  shapes = {k: v.shape for k, v in convert.encode(zeros).items()}
  arrays = synthetic_arrays(shapes)
  if 'clip' in member.family and 'head.bias' in arrays:
    # CLIP's projection has none.
    arrays['head.bias'] *= 0
  return convert.decode(shapes, arrays.__getitem__, expected, member.name)


def arrays_of(layout: Layout) -> Arrays:
  """The arrays of a tiny file of the layout."""
  return convert.encode(params_of(member_of(layout)), layout.rules)


@dataclasses.dataclass(frozen=True)
class Case:
  """A file, by what is in it.

  Attributes:
    title: whose file it is.
    content: makes names to arrays, or a tree of such mappings.
    name: of the file.
    chosen: the name of the set to load, after `#`.
    member: what it is loaded as.
  """

  title: str
  content: Callable[[], Any]
  name: str = 'model.safetensors'
  chosen: str = ''
  member: Member = PLAIN

  def write(self, folder: pathlib.Path) -> str:
    """Writes the file, and returns what to load."""
    path, content = folder / self.name, self.content()
    if path.suffix == '.safetensors':
      save_file(content, path)
    elif path.suffix == '.npz':
      np.savez(path, **content)
    elif path.suffix == '.json':
      write_shards(path, content)
    else:
      # PyTorch's format, as far as it matters: see `opened`.
      path.write_bytes(pickle.dumps(content))
    return f'{path}#{self.chosen}' if self.chosen else str(path)


def write_shards(path: pathlib.Path, arrays: Arrays) -> None:
  """Two safetensors files, and at `path` the index that names them."""
  names = sorted(arrays)
  places = {}
  for number in (1, 2):
    place = f'model-{number:05}-of-00002.safetensors'
    own = names[: len(names) // 2] if number == 1 else names[len(names) // 2 :]
    save_file({name: arrays[name] for name in own}, path.parent / place)
    places |= dict.fromkeys(own, place)
  path.write_text(json.dumps({'metadata': {}, 'weight_map': places}))


@contextmanager
def opened() -> Iterator[None]:
  """Registers the tiny members, and reads pickles as PyTorch would."""
  members = {x.member.name: x.member.variant for x in CASES}
  with (
    mock.patch.dict(VARIANTS, members),
    mock.patch.object(pickles, 'load', lambda p: pickle.loads(p.read_bytes())),
  ):
    yield


def outcome(case: Case) -> str:
  """What loading the case comes to, in a line."""
  said: list[str] = []
  handler = logging.Handler()
  handler.emit = lambda record: said.append(record.getMessage())
  log = logging.getLogger('lambda_vit_jax')
  log.addHandler(handler)
  with tempfile.TemporaryDirectory() as folder, opened():
    where = case.write(pathlib.Path(folder))
    try:
      load_pretrained(where, variant=case.member.name)
    except CheckpointError as error:
      said.append(f'refused: {error}')
    else:
      said.insert(0, 'loads')
    finally:
      log.removeHandler(handler)
    return '. '.join(x.replace(f'{folder}/', '') for x in said)


def plain(**changes: Any) -> Arrays:
  """timm's arrays of a tiny ViT, with others in place or beside."""
  return arrays_of(LAYOUTS[0]) | changes


def prefixed(prefix: str, arrays: Mapping[str, Any] | None = None) -> Arrays:
  """The arrays with a prefix."""
  own = plain() if arrays is None else arrays
  return {prefix + name: array for name, array in own.items()}


def _without(name: str) -> Arrays:
  return {k: v for k, v in plain().items() if k != name}


_SOME = np.zeros((1, 1, 24), np.float32)
_OTHER = np.ones((3, 2), np.float32)
_TEXT = {'text_model.final.weight': _OTHER, 'logit_scale': _OTHER[0, :1]}


def _beside(layout: Layout) -> Arrays:
  """Arrays that such a file has and that are no part of the network."""
  if layout.title.startswith("Meta's"):
    return {'mask_token': _SOME[0]}
  base = next(
    (x for x in layout.known if x.endswith('embeddings.cls_token')), ''
  ).removesuffix('embeddings.cls_token')
  if 'DINOv2' in layout.title:
    return {f'{base}embeddings.mask_token': _SOME[0]}
  if layout.title in ("transformers' ViT", "transformers' DeiT"):
    return {f'{base}pooler.dense.bias': _OTHER[0]}
  if layout.title in ("transformers' CLIP", "transformers' SigLIP"):
    return dict(_TEXT)
  if layout.title == "big_vision's SigLIP":
    return {'txt/head/bias': _OTHER[0], 't': _OTHER[0, :1]}
  return {}


def _layout_case(layout: Layout) -> Case:
  flax = layout.title.startswith(('Google', 'big_vision'))
  return Case(
    layout.title,
    lambda: arrays_of(layout) | _beside(layout),
    'model.npz' if flax else 'model.safetensors',
    member=member_of(layout),
  )


def _dino() -> dict[str, Any]:
  return {
    'student': prefixed('module.backbone.'),
    'teacher': prefixed('backbone.') | {'head.mlp.0.weight': _OTHER},
    'optimizer': {'state': {0: {'exp_avg': _OTHER}}, 'param_groups': []},
    'epoch': 3,
  }


def _averaged() -> dict[str, Any]:
  return {'model': plain(), 'model_ema': plain(), 'args': {'lr': 0.1}}


_CONTAINERS = tuple(
  Case(f'a checkpoint with `{key}`', lambda key=key: {key: plain()}, name)
  for key, name in {
    'model': 'deit.pth',
    'state_dict': 'model.pth.tar',
    'model_state_dict': 'model.pt',
    'teacher': 'model.bin',
  }.items()
)

CASES: tuple[Case, ...] = (
  *map(_layout_case, LAYOUTS),
  *(
    Case(f'prefix `{prefix}`', lambda prefix=prefix: prefixed(prefix))
    for prefix in (
      'module.',
      'model.',
      'backbone.',
      'encoder.',
      '_orig_mod.',
      'module._orig_mod.',
      'student.',
    )
  ),
  *_CONTAINERS,
  Case(
    'Lightning',
    lambda: {
      'epoch': 1,
      'state_dict': prefixed('model.'),
      'optimizer_states': [{'state': {0: {'step': _OTHER}}}],
    },
    'last.ckpt',
  ),
  Case('sharded', plain, 'model.safetensors.index.json'),
  Case('weights and their average', _averaged, 'run.pth'),
  Case('the average of these', _averaged, 'run.pth', 'model_ema'),
  Case('DINO in training', _dino, 'dino.pth'),
  Case("DINO's teacher", _dino, 'dino.pth', 'teacher'),
  Case('its backbone', _dino, 'dino.pth', 'teacher.backbone'),
  Case(
    'student and teacher in one dict',
    lambda: prefixed('student.') | prefixed('teacher.'),
  ),
  Case(
    'the teacher of these',
    lambda: prefixed('student.') | prefixed('teacher.'),
    chosen='teacher',
  ),
  Case(
    'a network beside others',
    lambda: prefixed('model.') | {'criterion.weight': _OTHER},
  ),
  Case('one array missing', lambda: _without('blocks.1.norm2.bias')),
  Case('one array too many', lambda: plain(extra=_OTHER)),
  Case('one of another shape', lambda: plain(**{'norm.bias': _OTHER[0]})),
  Case('optimizer alone', lambda: {'param_groups': [], 'lr': 0.1}, 'opt.pt'),
  Case('another network', lambda: {'conv1.weight': _OTHER, 'fc.bias': _OTHER}),
)
