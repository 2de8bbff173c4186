"""What the JSON files of a workdir hold, as far as they are read again."""

from typing import Any

from etils import epath

from lambda_vit_jax.checkpoints import description
from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.compression import schema as compression
from lambda_vit_jax.core import files
from lambda_vit_jax.core.schema import (
  List,
  Nullable,
  Number,
  Object,
  Schema,
  Text,
)
from lambda_vit_jax.selection import record

_COUNT = Number(0, 1 << 53, whole=True)
_SHARE = Number(0, 1)
_REAL = Number(-1e30, 1e30)
_POSITIVE = Number(0, 1e30, above=True)
_INTERVAL = List(_POSITIVE, 2, 2)
_PER_BLOCK = List(Nullable(_REAL), most=256)

_CONFIG = Object(
  optional={
    'init': Text(10_000),
    'method': Text(100),
    'seed': Number(-(1 << 63), 1 << 63, whole=True),
    'data': Object(optional={'source': Text(10_000)}),
    'model': Object(optional={'variant': Text(200)}),
    'select': Object(optional={'criterion': Text(200)}),
    'dilute': Object(optional={'start': Text(100), 'towards': Text(100)}),
  }
)

_ANALYSIS = Object(
  {
    'profile': Object(
      {'attention_entropy': _PER_BLOCK, 'mlp_entropy': _PER_BLOCK},
      {'cosine_similarity': _PER_BLOCK, 'num_images': _COUNT},
      alike=('attention_entropy', 'mlp_entropy'),
    )
  },
  {
    'spectrum': Object(
      optional={
        'frequencies': List(_REAL, most=1 << 12),
        'relative_log_amplitude': List(List(_REAL, most=1 << 12), most=256),
      }
    )
  },
)

_SCORES = Object(
  optional={
    'top1': _SHARE,
    'top5': _SHARE,
    'mean_iou': _SHARE,
    'pixel_accuracy': _SHARE,
    'loss': Nullable(_REAL),
    'num_images': _COUNT,
    'steps': _COUNT,
    'iou': List(Nullable(_SHARE), most=1 << 16),
    'missing_classes': List(_COUNT, most=1 << 16),
    # By the model that it is compared with.
    # A change, and half an interval, of which few images have a wide one.
    'difference': Object(others=List(Number(-1, 1e3), 2, 2)),
    'changed': Object(
      {
        'gained': _COUNT,
        'lost': _COUNT,
        'classes': List(
          Object(
            {'class': Text(1000)}
            | dict.fromkeys(('images', 'lost', 'gained'), _COUNT)
          ),
          most=1000,
        ),
        'images': List(
          Object(
            {'index': _COUNT}
            | dict.fromkeys(('label', 'before', 'after'), Text(1000))
          ),
          most=1000,
        ),
      }
    ),
  }
)

# Of each model.
_EVALUATION = Object(others=_SCORES)

_SIZE_AND_SPEED = Object(
  optional={
    'parameters': _POSITIVE,
    'macs': _POSITIVE,
    'macs_executed': _POSITIVE,
    'weight_bytes': _COUNT,
    'peak_bytes': Nullable(_COUNT),
    'images_per_second': Object(
      dict.fromkeys(('min', 'median', 'max'), _POSITIVE)
    ),
    'images_per_second_interval': _INTERVAL,
    'speedup': _POSITIVE,
    'speedup_interval': _INTERVAL,
    'flops_per_second': _POSITIVE,
    'fraction_of_matmul': _POSITIVE,
    'compile_seconds': Nullable(Number(0, 1e9)),
    'blocks': List(
      Object(
        {'block': _COUNT, 'attention': Text(100)}
        | dict.fromkeys(('neurons', 'tokens', 'merged', 'macs'), _COUNT)
      ),
      most=256,
    ),
  }
)
_MODELS: dict[str, Schema] = dict.fromkeys(
  ('dense', 'pruned', 'exported'), _SIZE_AND_SPEED
)

_PROGRAM = Object(
  {
    'images_per_second': Object(
      dict.fromkeys(('min', 'median', 'max'), _POSITIVE)
    ),
    'largest_difference': Nullable(_REAL),
  },
  {
    'images_per_second_interval': _INTERVAL,
    'speedup': _POSITIVE,
    'speedup_interval': _INTERVAL,
    'peak_bytes': Nullable(_COUNT),
    'top1': _SHARE,
    'num_images': _COUNT,
  },
)

_BENCHMARK = Object(
  {
    'device': Text(1000),
    'dtype': Text(100),
    'date': Text(100),
    'batch_size': _COUNT,
    'speedup': _POSITIVE,
    **_MODELS,
  },
  {
    # By runtime, dtype and model.
    'runtimes': Object(others=Object(others=Object(others=_PROGRAM))),
    'threads': _COUNT,
    'attention_kernel': Text(100),
    'rounds': _COUNT,
    'speedup_interval': _INTERVAL,
    'versions': Object(others=Text(100)),
    'sweep': List(Object({'batch_size': _COUNT}, _MODELS), most=1000),
  },
)

# By stage.
_JOURNAL = Object(
  others=Object(
    {
      'seconds': Number(0, 1e9),
      'date': Text(100),
      'device': Text(1000),
      'versions': Object(others=Text(100)),
    }
  )
)

SCHEMAS: dict[str, Schema] = {
  stage_table.CONFIG: _CONFIG,
  stage_table.JOURNAL: _JOURNAL,
  stage_table.ANALYSIS: _ANALYSIS,
  stage_table.SELECTION: record.SCHEMA,
  stage_table.PARTIAL_SELECTION: record.SCHEMA,
  # Layers and steps, as in `1,4@200`, to a loss.
  stage_table.PARTIAL_PROBE: Object(
    others=_REAL, names=r'\d{1,3}(?:,\d{1,3})*@\d{1,9}'
  ),
  stage_table.LINEAR: description.SCHEMA,
  stage_table.COMPRESSION: compression.SCHEMA,
  stage_table.COMPRESSED: description.SCHEMA,
  stage_table.EXPORT: description.SCHEMA,
  stage_table.EVALUATION: _EVALUATION,
  stage_table.BENCHMARK: _BENCHMARK,
}
"""By the name of the file in a workdir."""

_REMEDIES = {
  stage_table.CONFIG: 'delete it, and the next command writes its own values',
  stage_table.LINEAR: 'delete that folder to have `linearize` run again',
  stage_table.COMPRESSED: 'delete that folder to have `compress` run again',
  stage_table.EXPORT: 'delete that folder to have `export` run again',
}


def read(workdir: epath.Path, name: str) -> dict[str, Any] | None:
  """Reads a file of `SCHEMAS`; None where there is none.

  Raises:
    CheckpointError: not such a file; the message names it and the key.
  """
  path = workdir / name
  if not path.exists():
    return None
  remedy = _REMEDIES.get(name, files.REMEDY)
  return files.read_json(path, SCHEMAS[name], remedy)
