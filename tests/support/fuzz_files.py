"""One of every file that is read, whole: the originals of `support.fuzz`."""

import contextlib
import gzip
import io
import json
import pathlib
import shutil
import struct

import numpy as np
from etils import epath
from PIL import Image
from safetensors.numpy import save_file

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.checkpoints import (
  convert,
  google_names,
  orbax_store,
  timm_config,
)
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.checkpoints.layout_tables import LAYOUTS
from lambda_vit_jax.cli import workdir_lock
from lambda_vit_jax.compression.record import (
  BlockLeft,
  Compression,
  Point,
  Step,
)
from lambda_vit_jax.core import digests, files
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.record import Round, Selection
from tests.support.layout_files import write_shards

ROOT = pathlib.Path(__file__).parents[2]
NANO = 'vit_nano_patch2_8'
CONFIG = f'{ROOT}/configs/digits.py:runlocal'


def make_originals(root: pathlib.Path) -> None:
  """Writes all of them below `root`."""
  model = lv.create_model(NANO, seed=3)
  _write_weights(root, model)
  _write_checkpoint(root / 'run', model)
  _write_results(root)
  _write_workdir(root / 'workdir', root / 'export')
  _write_images(root)


def _write_weights(root: pathlib.Path, model: Model) -> None:
  export = root / 'export'
  lv.export(lv.prune(model, (1,)), export)
  unsealed = root / 'unsealed'
  shutil.copytree(export, unsealed)
  fields = json.loads((unsealed / 'model.json').read_text())
  del fields['sha256'], fields['files']
  files.write_json(unsealed / 'model.json', fields)
  for name in (
    'alone', 'foreign', 'timm', 'google', 'pickle', 'shards', 'transformers',
  ):  # fmt: skip
    (root / name).mkdir()
  shutil.copy(export / 'model.safetensors', root / 'alone')
  arrays = convert.encode(model.params)
  save_file(arrays, root / 'foreign/model.safetensors')
  save_file(arrays, root / 'timm/model.safetensors')
  config = timm_config.write_config(model)
  config['model_args'] |= {'embed_dim': 24, 'depth': 3, 'mlp_ratio': 4.0}
  (root / 'timm/config.json').write_text(json.dumps(config))
  write_shards(root / 'shards/model.safetensors.index.json', arrays)
  _write_transformers(root / 'transformers', model)
  np.savez(
    root / 'google/weights.npz',
    **convert.encode(model.params, google_names.GOOGLE),
  )
  _write_pickle(root / 'pickle/weights.pth', arrays)


def _write_transformers(folder: pathlib.Path, model: Model) -> None:
  """As `ViTForImageClassification.save_pretrained` does."""
  layout = next(x for x in LAYOUTS if x.title == "transformers' ViT")
  arrays = convert.encode(model.params, layout.rules)
  save_file(arrays, folder / 'model.safetensors')
  module = model.module
  config = {
    'model_type': 'vit',
    'hidden_size': module.embed_dim,
    'num_hidden_layers': module.depth,
    'num_attention_heads': module.num_heads,
    'intermediate_size': 4 * module.embed_dim,
    'patch_size': module.patch_size,
    'image_size': module.image_size[0],
    'num_channels': 1,
    'layer_norm_eps': 1e-6,
    'hidden_act': 'gelu',
  }
  (folder / 'config.json').write_text(json.dumps(config))
  images = {'image_mean': [0.5], 'image_std': [0.5], 'do_normalize': True}
  (folder / 'preprocessor_config.json').write_text(json.dumps(images))


def _write_pickle(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """PyTorch's file; without PyTorch, one that would start a program."""
  try:
    import torch
  except ImportError:
    path.write_bytes(b'cos\nsystem\n(S"touch executed"\ntR.')
    return
  tensors = {name: torch.tensor(array) for name, array in arrays.items()}
  torch.save({'model': tensors}, path)


def _write_checkpoint(workdir: pathlib.Path, model: Model) -> None:
  checkpointer = orbax_store.Checkpointer(
    workdir / 'checkpoints' / 'pretrain', keep_best=True
  )
  meta = {'model': describe(model), 'has_ema': False, 'total_steps': 3}
  checkpointer.save(3, {'params': model.params}, meta, {'accuracy': 0.5})
  checkpointer.close()


def _selection() -> Selection:
  rows = (
    Round({0: 0.5, 1: -0.25, 2: 1.5}, 1, 0.1, {0: (0.1, 0.9)}, (2,), 500),
    Round({0: 0.5, 2: 0.1}, 2, 1),
  )
  return Selection(
    'transfer_entropy', 'logits', 'signed', 128, 3.5, (1, 2), (1, 2), rows
  )


def _compression() -> Compression:
  """A search that has taken two steps, and timed the blocks."""
  blocks = tuple(BlockLeft(index, 'full', 128) for index in range(3))
  steps = (
    Step(
      macs=250_000,
      parameters=20_000,
      error=0.1,
      ms=2.5,
      part='neurons',
      block=1,
      attention='full',
      neurons=112,
      scores=((0, 'attention', 0.3), (1, 'neurons', 0.1)),
    ),
    Step(
      macs=200_000,
      parameters=18_000,
      error=-0.2,
      ms=2.0,
      part='attention',
      block=2,
      attention='linear',
      neurons=128,
    ),
  )
  options = {
    'criterion': 'output',
    'target': 'logits',
    'cost': 'time',
    'parts': ('attention', 'neurons'),
  }
  whole = Point(300_000, 22_000, 0.0, 3.0)
  return Compression(
    options, 1.4, 128, whole, whole, blocks, steps,
    pending=((0, 'neurons', 0.01),), timings={'attention': 0.4}, evaluations=3.5,
  )  # fmt: skip


def _write_results(root: pathlib.Path) -> None:
  for name in ('picked', 'search', 'lines'):
    (root / name).mkdir()
  fields = _selection().to_json()
  files.write_json(root / 'picked/selection.json', digests.seal(fields))
  # Of a search that is not finished, which bootstraps.
  for row in fields['rounds']:
    row['agreeing'] = 'ffff'
  files.write_json(
    root / 'search/selection.part.json', fields | {'resamples': 16}
  )
  _write_metrics(root / 'lines')
  (root / 'path').mkdir()
  files.write_json(root / 'path/compression.json', _compression().to_json())
  (root / 'locked').mkdir()
  # No process has this number: the job counts as ended.
  lock = workdir_lock.WorkdirLock(epath.Path(root / 'locked'))
  owner = lock._own | {'pid': 2**31 - 1, 'token': 'other', 'beat': 0.0}
  files.write_json(root / 'locked/lock.json', owner)


def _write_metrics(folder: pathlib.Path) -> None:
  rows = (
    {
      'stage': 'dilute',
      'step': step,
      'loss': 1.5,
      'accuracy': 0.25,
      'lambda': 1 - step / 4,
    }
    for step in range(5)
  )
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)


def _write_workdir(folder: pathlib.Path, export: pathlib.Path) -> None:
  """A finished run, as far as the report reads it."""
  argv = ['report', f'--config={CONFIG}', f'--workdir={folder}', '--quiet']
  with contextlib.redirect_stdout(io.StringIO()):
    assert main.main(argv) == 0
  config = json.loads((folder / 'config.json').read_text())
  # Blocks are dropped with this method only.
  files.write_json(folder / 'config.json', config)
  entropies = {'attention_entropy': [1.0, None, 2.5], 'mlp_entropy': [1.5] * 3}
  entropies['cosine_similarity'] = [0.5, None, 0.9]
  spectrum = {
    'frequencies': [0.0, 3.0],
    'relative_log_amplitude': [[0.0, -0.5]] * 3,
  }
  files.write_json(
    folder / 'analysis.json', {'profile': entropies, 'spectrum': spectrum}
  )
  stage = {'seconds': 75.0, 'date': '2026-01-01', 'device': 'a processor'}
  files.write_json(
    folder / 'stages.json', {'select': stage | {'versions': {'jax': '0.10'}}}
  )
  files.write_json(folder / 'selection.json', _selection().to_json())
  files.write_json(folder / 'compression.json', _compression().to_json())
  scores = {'mean_iou': 0.5, 'iou': [0.5, None], 'num_images': 10}
  names = ('dense', 'pruned', 'exported')
  files.write_json(folder / 'evaluation.json', dict.fromkeys(names, scores))
  speed = {
    'parameters': 20_000,
    'macs': 300_000,
    'macs_executed': 300_000,
    'weight_bytes': 80_000,
    'peak_bytes': 100_000,
    'images_per_second': {'min': 9.0, 'median': 10.0, 'max': 12.0},
    'images_per_second_interval': [9.5, 10.5],
    'speedup': 1.25,
    'speedup_interval': [0.9, 1.5],
    'flops_per_second': 6e6,
    'fraction_of_matmul': 0.25,
    'compile_seconds': 0.5,
    'blocks': [
      {
        'block': 0,
        'attention': 'full',
        'neurons': 128,
        'tokens': 17,
        'merged': 1,
        'macs': 9_000,
      }
    ],
  }
  measured = {
    'device': '2 x processor',
    'dtype': 'float32',
    'batch_size': 64,
    'date': '2026-01-01',
    'speedup': 1.25,
    'speedup_interval': [1.2, 1.3],
    'versions': {'jax': '0.10', 'jaxlib': '0.10'},
    **dict.fromkeys(names, speed),
  }
  sweep = [{'batch_size': 1, **dict.fromkeys(names, speed)}]
  files.write_json(folder / 'benchmark.json', measured | {'sweep': sweep})
  (folder / 'linear').mkdir()
  shutil.copy(export / 'model.json', folder / 'linear')
  _write_metrics(folder)
  (folder / 'pictures').mkdir()
  Image.new('RGB', (16, 4)).save(folder / 'pictures/0000.png')


def _write_images(root: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
  image = Image.fromarray(pixels)
  for folder, name in (
    ('images', 'picture.png'),
    ('photos', 'picture.jpg'),
    ('forms', 'picture.webp'),
    ('scans', 'picture.tif'),
  ):
    (root / folder).mkdir()
    image.save(root / folder / name)
  # No two alike, which `check-data` would call a problem.
  for split in ('train', 'val'):
    for name in ('cat', 'dog'):
      _save(root / 'classes' / split / name / '0.png', rng)
    _save(root / 'scenes' / split / 'images/0.png', rng)
    _save(root / 'scenes' / split / 'masks/0.png', rng, 2)
  (root / 'scenes/classes.txt').write_text('sky\nground\n')
  (root / 'digits').mkdir()
  for split in ('train', 't10k'):
    digits = rng.integers(0, 256, (4, 5, 5), dtype=np.uint8)
    _write_idx(root / f'digits/{split}-images-idx3-ubyte.gz', digits)
    _write_idx(
      root / f'digits/{split}-labels-idx1-ubyte.gz',
      np.asarray([0, 1, 0, 1], np.uint8),
    )


def _save(
  path: pathlib.Path, rng: np.random.Generator, levels: int = 256
) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  array = rng.integers(0, levels, (12, 12), dtype=np.uint8)
  Image.fromarray(array).save(path)


def _write_idx(path: pathlib.Path, array: np.ndarray) -> None:
  header = bytes([0, 0, 8, array.ndim])
  header += struct.pack(f'>{array.ndim}I', *array.shape)
  path.write_bytes(gzip.compress(header + array.tobytes()))
