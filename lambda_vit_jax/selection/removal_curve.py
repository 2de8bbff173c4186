"""Accuracy over the number of attention layers left out, nothing trained."""

from collections.abc import Sequence

from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.trials import TrialRunner


def top1_over_removed(
  model: Model,
  images: ImageSet,
  order: Sequence[int],
  memory_gib: float | None = None,
) -> tuple[float, ...]:
  """Top-1 with the first 0, 1, 2, … layers of a selection left out.

  The stream x of a block without its attention stays x, as in a search. All
  networks share one pass over the blocks, and a block that none of them has left
  out yet runs once.

  Args:
    model: as it was searched, with a head.
    images: with labels; in float32, on the devices of the search.
    order: blocks, in the order of their removal.
    memory_gib: memory for activations per device.

  Returns:
    Fractions of the images of all processes, `[len(order) + 1]`.

  Raises:
    DataError: no labels.
  """
  runner = TrialRunner(model, images, 'correct', memory_gib)
  prefixes = [tuple(sorted(order[:count])) for count in range(len(order) + 1)]
  found = runner.evaluate(prefixes)
  right = (found[prefix].pooled() for prefix in prefixes)
  # A mean of counts, as rounding in the moments must not show.
  return tuple(round(m.mean[0] * images.total) / images.total for m in right)
