"""What `compression.json` holds."""

from lambda_vit_jax.compression.parts import KINDS
from lambda_vit_jax.core.schema import (
  Anything,
  Bool,
  Choice,
  List,
  Nullable,
  Number,
  Object,
  Text,
)
from lambda_vit_jax.models.modes import MODES

_BLOCK = Number(0, 255, whole=True)
_COUNT = Number(0, 1 << 53, whole=True)
_REAL = Number(-1e30, 1e30)
_SIZE = {
  'macs': Number(1, 1 << 53, whole=True),
  'parameters': Number(1, 1 << 53, whole=True),
  'ms': Nullable(Number(0, 1e9, above=True)),
}
_LEFT = {
  'block': _BLOCK,
  'attention': Nullable(Choice(tuple(MODES))),
  'neurons': Nullable(Number(0, 1 << 20, whole=True)),
}
_MERGED = {'merged': Number(0, 1 << 20, whole=True)}

SCHEMA = Object(
  {
    'options': Object(
      {
        'criterion': Text(100),
        'target': Text(100),
        'cost': Text(100),
        'parts': List(Text(100)),
      },
      others=Anything(),
    ),
    'target_speedup': Number(1, 1000, above=True),
    'num_images': _COUNT,
    'dense': Object({**_SIZE, 'error': _REAL}),
    'start': Object({**_SIZE, 'error': _REAL}),
    'blocks': List(Object(_LEFT, _MERGED), 1, 256),
    'steps': List(
      Object(
        {
          **_SIZE,
          **_LEFT,
          'part': Choice(KINDS),
          'error': _REAL,
          'settled': Nullable(Bool()),
          'scores': List(
            Object({'block': _BLOCK, 'part': Choice(KINDS), 'score': _REAL})
          ),
          'seconds': Number(0, 1e12),
        },
        _MERGED,
      )
    ),
    'pending': List(
      Object({'block': _BLOCK, 'part': Choice(KINDS), 'increase': _REAL})
    ),
  },
  {
    'timings': Object(others=Number(0, 1e9, above=True)),
    'evaluations': Number(0, 1e12),
  },
)
"""Of `compression.json`."""
