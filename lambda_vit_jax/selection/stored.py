"""Selections of public weights that ship with the package, and saved ones."""

import os
import pathlib

from etils import epath

from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import CheckpointError, nearest
from lambda_vit_jax.core.files import read_json, user_path
from lambda_vit_jax.selection.record import SCHEMA, Selection

_FOLDER = pathlib.Path(__file__).with_name('stored_files')

STORED = ('vit_small_patch14_dinov2',)
"""Variants; how each was made stands in benchmarks/stored_selection.py."""


@check_arguments
def load_selection(
  name: str | os.PathLike[str], num_layers: int | None = None
) -> Selection:
  """A selection of a variant's public weights, or one that was saved.

  Those of the package are of NOSE on 512 images of Caltech-101 at 112 pixels, as
  far as eight layers, with a linear probe's logits
  (benchmarks/stored_selection.py), of a DINOv2 ViT-S whose weights a package had
  tuned. Other weights, images, sizes and heads choose otherwise: `lv.nose` on one's
  own images is surer. Maps do not ship at all: they are of one network's weights,
  and `lv.linearize` fits those of five layers in minutes.

  Args:
    name: of `STORED`, a `selection.json`, or the workdir of a run.
    num_layers: the first so many of the search; by default all.

  Returns:
    What `lv.prune`, `lv.linearize` and `lv.dilute` take as layers.

  Raises:
    CheckpointError: an unknown name, no such file, not a selection, or fewer
      layers than `num_layers`.
  """
  if str(name) in STORED:
    path = epath.Path(_FOLDER / f'{name}.json')
  else:
    path = user_path(name)
    path = path / 'selection.json' if path.is_dir() else path
    if not path.exists():
      raise CheckpointError(
        f'{name}: no such selection{nearest(str(name), STORED)}; give '
        f'{" or ".join(STORED)}, a selection.json, or a workdir with one'
      )
  found = Selection.from_json(read_json(path, SCHEMA), str(path))
  return found if num_layers is None else found.first(num_layers)
