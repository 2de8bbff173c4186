"""Aliases for arrays and trees, and the names of axes in docstrings.

Axes: `batch height width channels` (NHWC) for images; `tokens` includes the
class token, `embed` is the model width, `heads` the attention heads. Where
leading axes may vary, axes are counted from the right.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

Array = jax.Array | np.ndarray
"""Any array: on a device or on the host."""

Params = dict[str, Any]
"""A plain nested dict of arrays, keyed as in `lambda_vit_jax.models.vit`."""

Intermediates = Mapping[str, Any]
"""Named activations of one forward pass."""

AttentionMode = Literal[
  'full', 'diluted', 'skip', 'identity', 'absent', 'linear'
]
"""What the attention half of a block computes: a key of `models.modes.MODES`.

See docs/method.md#a-block-and-its-modes.
"""
