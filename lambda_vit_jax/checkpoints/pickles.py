"""Read PyTorch's files without running anything in them.

`torch.load(weights_only=True)` makes tensors and plain containers only. What
else training programs store beside the weights, such as their arguments, has
types that it refuses. Of those on the list below, all of which hold nothing
but values, an inert stand-in is made in their place, so that not even their
own code runs.
"""

import pathlib
import re
from typing import Any

from lambda_vit_jax.core.errors import CheckpointError

_HARMLESS = re.compile(
  r'argparse\.Namespace'
  r'|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray)'
  r'|numpy\.(dtypes\.\w+|(float|int|uint|bool|str)\w*)'
  r'|_codecs\.encode'
  r'|pathlib\.(Pure)?(Posix|Windows)?Path'
  r'|collections\.(defaultdict|deque)'
  r'|builtins\.(dict|list|int|float|object)'
  r'|(datetime|typing)\.\w+'
  r'|(omegaconf|yacs|easydict|ml_collections|addict)\.[\w.]+'
  r'|(pytorch_)?lightning(_fabric)?\.[\w.]+'
  r'|(timm\.utils|mmengine|mmcv)\.[\w.]+'
)
"""Full names of types that hold values only."""


class _Left:
  """Stands for an object that is not read; accepts and forgets all values."""

  def __new__(cls, *_: Any, **__: Any) -> '_Left':
    return super().__new__(cls)

  def __init__(self, *_: Any, **__: Any):
    pass

  def __setstate__(self, _: Any) -> None:
    pass


def load(path: pathlib.Path) -> Any:
  """What a PyTorch file holds: tensors, containers, and stand-ins.

  Raises:
    CheckpointError: no PyTorch here, a damaged file, or one with a type that
      is not known to be harmless.
  """
  try:
    import torch
  except ImportError:
    raise CheckpointError(
      f'{path}: a PyTorch pickle, which only PyTorch can read safely; '
      "install it (pip install 'lambda_vit_jax[torch]'), or convert the file "
      'where PyTorch is, by the lines of docs/pytorch.md#convert-a-pth-file'
    ) from None
  others = _other_types(path, torch)
  for name in others:
    if not _HARMLESS.fullmatch(name):
      raise CheckpointError(
        f'{path}: holds a {name[:80]} beside its tensors, refused without '
        'running it; docs/pytorch.md#convert-a-pth-file says how to convert it'
      )
  # One class for each name: PyTorch looks a stand-in up by its class.
  stand_ins = [(type('Left', (_Left,), {}), name) for name in others]
  try:
    with torch.serialization.safe_globals(stand_ins):
      return torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:
    # torch raises many types for files that it refuses or cannot parse.
    reason = ' '.join(str(error).split())[:160]
    raise CheckpointError(
      f'{path}: not a plain PyTorch state dict, refused without running it '
      f'({reason}); docs/pytorch.md#convert-a-pth-file says how to convert it'
    ) from error


def _other_types(path: pathlib.Path, torch: Any) -> list[str]:
  """Names of the types that PyTorch does not read by itself.

  None of an old file, before PyTorch's zip archives; it is read plainly.
  """
  try:
    found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
  except Exception:
    # Damaged, or old: reading it tells which.
    return []
  return sorted(found)
