"""The files of a made-up run, for its report."""

import json
import pathlib

import pytest

from lambda_vit_jax.cli.report import build

_SCORES = ({0: 0.4, 1: -0.2, 2: 0.1}, {0: 0.5, 2: 0.05})
HOSTILE = '<script>alert(1)</script>" onload="x'


def _size(scale: float) -> dict:
  return {
    'parameters': int(22_000_000 * scale),
    'macs': int(4_600_000_000 * scale),
    'macs_executed': int(4_000_000_000 * scale**2),
    'weight_bytes': int(88_000_000 * scale),
    'images_per_second': {'min': 9.0, 'median': 10.0 / scale, 'max': 12.0},
  }


def _block(number: int, attention: str, macs: int) -> dict:
  """A row of `blocks`, of a block that merges nothing."""
  row = {'block': number, 'attention': attention, 'macs': macs}
  return row | {'neurons': 1536, 'tokens': 197, 'merged': 0}


_DENSE = [_block(k, 'full', 500_000_000) for k in range(3)]
_PRUNED = [
  _block(0, 'full', 500_000_000),
  _block(1, 'absent', 300_000_000),
  _block(2, 'absent', 300_000_000),
]

FILES = {
  'config.json': {
    'model': {'variant': 'deit_small_patch16_224'},
    'data': {'source': HOSTILE},
    'method': 'dilute',
    'seed': 3,
  },
  'stages.json': {
    stage: {
      'seconds': seconds,
      'date': '2026-01-01',
      'device': 'a processor',
      'versions': {'lambda_vit_jax': '0.2.0', 'jax': '0.10.2'},
    }
    for stage, seconds in (('select', 75.0), ('dilute', 3600.0))
  },
  'analysis.json': {
    'profile': {
      'attention_entropy': [1.0, None, 3.0],
      'mlp_entropy': [2.0, 2.5, 2.75],
      'cosine_similarity': [0.5, None, 0.98],
      'num_images': 2048,
    },
    'spectrum': {
      'frequencies': [0.0, 1.5, 3.0],
      'relative_log_amplitude': [[0.0, -0.1 * k, -0.2 * k] for k in range(3)],
    },
  },
  'selection.json': {
    'criterion': HOSTILE,
    'target': 'logits',
    'sign': 'signed',
    'base_entropy': 3.5,
    'num_samples': 2048,
    'order': [1, 2],
    'removed': [1, 2],
    'rounds': [
      {
        'scores': {str(k): v for k, v in scores.items()},
        'chosen': chosen,
        'seconds': 1.5,
        'intervals': {str(k): [v - 0.1, v + 0.1] for k, v in scores.items()},
        'indistinguishable': [2] if chosen == 1 else [],
      }
      for scores, chosen in zip(_SCORES, (1, 2), strict=True)
    ],
  },
  'evaluation.json': {
    name: {'top1': top1, 'top5': 0.95, 'loss': 0.9, 'num_images': 50000}
    for name, top1 in (('dense', 0.799), ('pruned', 0.803), ('exported', 0.803))
  },
  'benchmark.json': {
    'speedup_interval': [1.2, 1.3],
    'device': 'a processor with a long name @ 2.50GHz',
    'dtype': 'float32',
    'batch_size': 64,
    'date': '2026-01-01',
    'speedup': 1.25,
    'dense': _size(1.0) | {'blocks': _DENSE},
    'pruned': _size(0.9) | {'blocks': _PRUNED},
    'exported': _size(0.9),
  },
}


FILES['evaluation.json']['pruned'] |= {
  'difference': {'dense': [0.004, 0.0021], 'baseline': [0.002, 0.003]},
  'changed': {
    'gained': 400,
    'lost': 200,
    'classes': [{'class': HOSTILE, 'images': 50, 'lost': 3, 'gained': 1}],
    'images': [{'index': 7, 'label': HOSTILE, 'before': 'cat', 'after': 'dog'}],
  },
}


_POINT = {'macs': 4_000, 'parameters': 900, 'error': 0.0, 'ms': None}

COMPRESSION = {
  'options': {
    'criterion': 'output',
    'target': 'logits',
    'cost': 'macs',
    'parts': ['attention', 'neurons', 'blocks'],
  },
  'target_speedup': 1.5,
  'num_images': 512,
  'dense': _POINT,
  'start': _POINT,
  'blocks': [
    {'block': k, 'attention': 'full', 'neurons': 64} for k in range(3)
  ],
  'steps': [
    {
      'macs': macs,
      'parameters': 800,
      'ms': None,
      'error': error,
      'part': part,
      'block': block,
      'attention': attention,
      'neurons': neurons,
      'settled': None,
      'scores': [],
      'seconds': 1.0,
    }
    for macs, error, part, block, attention, neurons in (
      (3_500, 0.01, 'neurons', 0, 'full', 48),
      (3_000, 0.02, 'attention', 1, 'linear', 64),
      (2_500, 0.04, 'block', 2, None, 0),
    )
  ],
  'pending': [],
}
"""A path of three steps, for `compression.json`."""


def write_files(workdir, **changes):
  """All of `FILES`, with other values for keys of some: `config={'seed': 1}`."""
  for name, value in FILES.items():
    value = value | changes.get(name.partition('.')[0], {})
    (workdir / name).write_text(json.dumps(value))


def write_metrics(workdir, stages=('pretrain', 'dilute'), last=200):
  """Curves that fall and rise, with held-out figures at every 50th step."""
  rows = []
  for stage in stages:
    for step in range(1, last):
      row = {
        'stage': stage,
        'step': step,
        'loss': 1 / step,
        'accuracy': 1 - 1 / step,
        'lambda': 1 - step / last,
      }
      if step % 50 == 0:
        row |= {'holdout_loss': 0.5, 'holdout_accuracy': 0.75}
      rows.append(row)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (workdir / 'metrics.jsonl').write_text(text)


def written(workdir: pathlib.Path) -> str:
  """The report page of a workdir, about which there is nothing to warn."""
  return build.write_report(workdir, pytest.fail).read_text()
