"""`WeightFile`: names and shapes of the arrays of an open file."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from lambda_vit_jax.checkpoints.convert import Rules
from lambda_vit_jax.checkpoints.layout_tables import TIMM
from lambda_vit_jax.checkpoints.layouts import Layout


@dataclasses.dataclass(frozen=True)
class WeightFile:
  """An open weight file.

  Attributes:
    path: for messages.
    shapes: shape of every array, by name.
    read: returns an array by its name.
    layout: whose names these are.
    description: the model's description in our own files, else None.
  """

  path: str
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]
  layout: Layout = TIMM
  description: Mapping[str, Any] | None = None

  @property
  def rules(self) -> Rules:
    """The table of `convert` that the names follow."""
    return self.layout.rules

  def without(self, names: Collection[str]) -> 'WeightFile':
    """The file without some arrays."""
    left = {x: shape for x, shape in self.shapes.items() if x not in names}
    return dataclasses.replace(self, shapes=left)

  def renamed(self, names: Mapping[str, str]) -> 'WeightFile':
    """The arrays that `names` has: new name to the one in the file."""
    return dataclasses.replace(
      self,
      shapes={new: self.shapes[old] for new, old in names.items()},
      read=lambda name: self.read(names[name]),
    )

  def with_layout(self, layout: Layout) -> 'WeightFile':
    """The file as one of another layout."""
    return dataclasses.replace(self, layout=layout)
