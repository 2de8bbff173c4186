"""The page of a model on the hub: what was removed, how, and what it costs.

Every figure is from the files of an export and of its run; what they do not
hold is not on the page.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import removed_layers
from lambda_vit_jax.models.variants import VARIANTS

Facts = Mapping[str, Any]

_TIMM_LINES = """```python
import json, timm, torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

folder = snapshot_download('{repository}')
with open(f'{{folder}}/config.json') as file:
  config = json.load(file)
model = timm.create_model(
  config['architecture'],
  num_classes=config['num_classes'],
  **config['model_args'],
)
state = load_file(f'{{folder}}/model.safetensors')


def forward(x, block, mode, width):
  if mode != 'absent':
    x = x + block.ls1(block.attn(block.norm1(x)))
  if width:
    x = x + block.ls2(block.mlp(block.norm2(x)))
  return x


for index, (block, mode, width, epsilon) in enumerate(
  zip(
    model.blocks,
    config['attention_modes'],
    config['mlp_dims'],
    config['norm_eps'],
  )
):
  block.norm1.eps = block.norm2.eps = epsilon
  for name, layer in list(block.mlp.named_children()):
    if width and isinstance(layer, torch.nn.Linear):
      shape = state[f'blocks.{{index}}.mlp.{{name}}.weight'].shape
      setattr(block.mlp, name, torch.nn.Linear(shape[1], shape[0]))
  if mode == 'absent' or not width:
    block.forward = lambda x, block=block, mode=mode, width=width, **_: (
      forward(x, block, mode, width)
    )
  if mode == 'absent':
    block.norm1 = block.attn = block.ls1 = torch.nn.Identity()
  if not width:
    block.norm2 = block.mlp = block.ls2 = torch.nn.Identity()
model.norm.eps = model.fc_norm.eps = config['norm_eps'][-1]
model.load_state_dict(state)
```"""

_JAX_LINES = """```python
import lambda_vit_jax as lv

model = lv.load_pretrained('hf-hub:{repository}')
logits = model(lv.preprocess(['image.jpg'], model))
```"""

_ONNX_LINES = """```python
import onnxruntime
from huggingface_hub import hf_hub_download

path = hf_hub_download('{repository}', 'model.onnx')
session = onnxruntime.InferenceSession(path)
(logits,) = session.run(None, {{session.get_inputs()[0].name: images}})
```"""


def make_card(
  model: Model,
  repository: str,
  facts: Mapping[str, Facts] | None = None,
  licence: str = '',
) -> str:
  """The text of `README.md` of a model on the hub.

  Args:
    model: what was exported.
    repository: `OWNER/NAME`.
    facts: content of the run's JSON files by name (`selection`, `evaluation`,
      `benchmark`, `config`), as far as there are any; `export` for what
      `export` returned.
    licence: of the weights, as the hub names it (`apache-2.0`).
  """
  found = dict(facts or {})
  parts = [
    _header(model, licence),
    f'# {repository.rpartition("/")[2]}',
    _summary(model),
    *_selection(found.get('selection', {})),
    *_accuracy(found.get('evaluation', {})),
    *_speed(found.get('benchmark', {})),
    *_data(found.get('config', {})),
    _licence(model, licence),
    '## How to load it',
    *_loading(model, repository, found.get('export', {})),
  ]
  return '\n\n'.join(parts) + '\n'


def _base(model: Model) -> str:
  """The hub's name of the weights that a variant usually starts from."""
  variant = VARIANTS.get(model.variant)
  return variant.weights.removeprefix('hf-hub:') if variant else ''


def _header(model: Model, licence: str) -> str:
  """What the hub reads: YAML between two lines of dashes."""
  task = (
    'image-segmentation'
    if model.module.segmentation is not None
    else 'image-classification'
    if model.num_classes
    else 'image-feature-extraction'
  )
  fields = {
    'library_name': 'lambda_vit_jax',
    'pipeline_tag': task,
    'tags': ['vision-transformer', 'pruned', 'jax', 'timm'],
  }
  if licence:
    fields['license'] = licence
  # JSON is YAML, so that no value can end the line or the block.
  lines = [f'{key}: {json.dumps(value)}' for key, value in fields.items()]
  return '\n'.join(['---', *lines, '---'])


def _summary(model: Model) -> str:
  removed = removed_layers(model.attention_modes)
  height, width = model.preprocessing.image_size
  what = (
    f'without the attention layers of blocks {_listed(removed)} '
    f'({len(removed)} of {model.depth})'
    if removed
    else 'with all of its attention layers'
  )
  linear = [
    i for i, mode in enumerate(model.attention_modes) if mode == 'linear'
  ]
  more = (
    f' The attention of blocks {_listed(linear)} is replaced by a linear map.'
    if linear
    else ''
  )
  if model.module.mlp_dims:
    more += (
      ' The hidden widths of its MLPs, block by block, are '
      f'{_listed(model.mlp_dims)}.'
    )
  return (
    f'A `{model.variant}` {what}, made with lambda_vit_jax.{more} It has '
    f'{model.num_parameters / 1e6:.2f} million parameters and needs '
    f'{model.macs() / 1e9:.2f} billion multiply-accumulates for an image of '
    f'{height} × {width} pixels.'
  )


def _listed(numbers: Any) -> str:
  return ', '.join(map(str, numbers))


def _selection(selection: Facts) -> Iterator[str]:
  if not selection:
    return
  yield '## How the layers were chosen'
  target = selection.get('target')
  goal = f' of the {target}' if target else ''
  yield (
    f'By the criterion `{selection.get("criterion")}`{goal} on '
    f'{selection.get("num_samples")} images of the training split, in the order '
    f'{_listed(selection.get("order", ()))}.'
  )


def _accuracy(evaluation: Facts) -> Iterator[str]:
  rows = [
    (name, row)
    for name, row in evaluation.items()
    if isinstance(row, Mapping) and {'top1', 'num_images'} <= set(row)
  ]
  if not rows:
    return
  yield '## Accuracy'
  lines = ['| network | top-1 | images |', '|---|---|---|']
  lines += [
    f'| {name} | {100 * row["top1"]:.2f}% | {row["num_images"]} |'
    for name, row in rows
  ]
  yield '\n'.join(lines)


def _speed(benchmark: Facts) -> Iterator[str]:
  rows = [
    (name, benchmark[name])
    for name in ('dense', 'pruned')
    if 'images_per_second' in benchmark.get(name, {})
  ]
  if not rows:
    return
  yield '## Speed'
  lines = ['| network | images per second (median) |', '|---|---|']
  lines += [
    f'| {name} | {row["images_per_second"]["median"]:.1f} |'
    for name, row in rows
  ]
  yield '\n'.join(lines)
  yield (
    f'Measured on {benchmark.get("device")} in {benchmark.get("dtype")} with '
    f'{benchmark.get("batch_size")} images per call: '
    f'{benchmark.get("speedup", 1.0):.2f} times the images per second.'
  )


def _data(config: Facts) -> Iterator[str]:
  source = config.get('data', {}).get('source')
  if source:
    yield '## Data'
    # Paths of the machine that trained it are nobody else's business.
    kind, colon, rest = str(source).partition(':')
    name = rest.rstrip('/').rpartition('/')[2]
    yield f'Trained and evaluated on `{kind}{colon}{name}`.'


def _licence(model: Model, licence: str) -> str:
  base = _base(model)
  origin = (
    f' It is a derivative of its base weights: if those are '
    f'[{base}](https://huggingface.co/{base}), their licence applies.'
    if base
    else ' If it was made from other weights, their licence applies.'
  )
  stated = f'`{licence}`.' if licence else 'None is stated here.'
  return f'## Licence\n\n{stated}{origin}'


def _loading(model: Model, repository: str, report: Facts) -> Iterator[str]:
  written = report.get('bytes', {})
  preprocessing = model.preprocessing
  yield (
    f'Images: {preprocessing.image_size[0]} × {preprocessing.image_size[1]}, '
    f'{preprocessing.interpolation}, centre crop '
    f'{preprocessing.crop_ratio:g}, mean {_listed(preprocessing.mean)}, '
    f'standard deviation {_listed(preprocessing.std)}.'
  )
  yield f'JAX:\n\n{_JAX_LINES.format(repository=repository)}'
  plain = not {'linear', 'diluted'} & set(model.attention_modes)
  if 'model.safetensors' in written and plain:
    yield f'timm:\n\n{_TIMM_LINES.format(repository=repository)}'
  if 'model.onnx' in written:
    yield f'onnxruntime:\n\n{_ONNX_LINES.format(repository=repository)}'
