"""Remove hidden neurons of MLPs, and let those that stay make up for them.

Of the hidden layer h of an MLP, S stays and P goes. Ridge regression on h_S
predicts what the stream then lacks after the block, and the prediction is added
to the output weights of S:

  (ΔW, Δb) = argmin Σ |wanted - x - h_S·W_S - b - h_S·ΔW - Δb|² + ridge·|ΔW|²

x is the stream before the MLP, and `wanted` the dense stream after the block, or
what the whole MLP makes of x. In the second case ΔW is B·W_P, with B the
regression of h_P on h_S, and the repair is exact where h_P is affine in h_S.

Which neurons go: with W the output weights, as repaired so far, and C the
covariance of the neurons that are left, losing neuron j costs the output

  |W_j|² / (C⁻¹)_jj

(the Schur complement). The cheapest goes first, and W and C⁻¹ are those of the
rest. One such elimination gives the order of all neurons, and what each prefix
of it costs. All of it is float64 on the host, from streamed sums of products.
"""

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.linalg
from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import Batches, ImageSet, read_images
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import ModelError, UsageError
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models import surgery
from lambda_vit_jax.models.edits import narrow_mlps
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name, check_blocks
from lambda_vit_jax.training_free import least_squares, mlp_refit, paired
from lambda_vit_jax.training_free.cross_validation import choose_ridge
from lambda_vit_jax.training_free.least_squares import AffineMap, CrossMoments

TARGETS = ('stream', 'mlp')
"""What the neurons that stay are fitted to: the dense stream after the block, or
the whole MLP's output on the modified network's stream."""

ORDER_RIDGE = 1e-3
"""Ridge of the covariance in the elimination, as a share of its mean variance."""

# An elimination updates the covariance once per so many parts of the width; of
# twice as many neurons, the cheapest, the next are found one by one.
_PARTS = 64


@dataclasses.dataclass(frozen=True)
class Elimination:
  """In which order neurons go, and what that costs.

  Attributes:
    order: `[hidden]`, the neuron that goes first in front.
    losses: `[gone + 1]` mean squared error of the MLP's output, summed over
      channels, once so many neurons are gone and the others repaired; the first
      is 0, and the last the output's variance.
  """

  order: np.ndarray
  losses: np.ndarray

  def kept(self, width: int) -> np.ndarray:
    """The `width` neurons that stay longest, ascending."""
    return np.sort(self.order[len(self.order) - width :])


@dataclasses.dataclass(frozen=True)
class NeuronFit:
  """How a block's MLP was narrowed.

  Attributes:
    block_index: the block.
    width: neurons that stay.
    ridge: share of their mean variance, 0 where none stays.
    residual: share of the variance of what the stream lacks without the repair
      that remains with it, on the images that it was fitted on.
  """

  block_index: int
  width: int
  ridge: float
  residual: float


@check_arguments
def narrow(
  model: Model,
  batches: Batches,
  widths: float | Iterable[int],
  *,
  blocks: Iterable[int] | None = None,
  target: str = 'stream',
  dense: Model | None = None,
  ridge: float | str = 'auto',
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> Model:
  """`model` with narrower MLPs, whose neurons make up for those that are gone.

  Block after block on the network as narrowed so far; labels are not used
  (docs/compression.md#narrow-mlps).

  Args:
    model: finished, not folded; not changed.
    batches: an iterable of normalised NHWC arrays, or what else
      `images.read_images` takes. 512 images are enough for most networks.
    widths: neurons that stay, per block, 0 to remove an MLP; or one share for
      all MLPs, such as 0.5, which leaves at least one neuron.
    blocks: with a share, the blocks to narrow; by default all.
    target: `stream`, the dense stream after the block, so that later MLPs make
      up for what earlier blocks lost; or `mlp`, the block's own MLP.
    dense: the network that gives the dense stream, if attention layers or
      blocks of `model` were removed before; by default `model`.
    ridge: penalty, see `least_squares.solve`; `auto` takes for each block what
      predicts held-out images best.
    memory_gib: working memory per device, see `refit`.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    A `Model` with other `mlp_dims`; float32 arrays on the host in the MLPs that
    are narrower, and all others shared with `model`.

  Raises:
    ModelError: widths that do not fit the blocks, an MLP whose hidden layer is
      normalised, models that differ in more than `refit` allows, or activations
      that are not finite.
    DataError: fewer than 32 images, or images of another shape.
    UsageError: an unknown target, or an impossible ridge.
  """
  wanted = checked_widths(model, widths, blocks)
  checked = least_squares.check_ridge(ridge)
  images = read_images(batches, model, mesh)
  options = NarrowOptions(target, checked)
  return narrow_on(model, dense, images, wanted, options, memory_gib)[0]


@dataclasses.dataclass(frozen=True)
class NarrowOptions:
  """How neurons are repaired.

  Attributes:
    target: of `TARGETS`.
    ridge: None to choose it per block.
  """

  target: str = 'stream'
  ridge: float | None = None

  def __post_init__(self):
    if self.target not in TARGETS:
      raise UsageError(
        f'narrow: target={self.target!r} is not known; use '
        f'{" or ".join(TARGETS)}'
      )


def checked_widths(
  model: Model, widths: Any, blocks: Iterable[int] | None = None
) -> dict[int, int]:
  """The blocks to narrow, and how many neurons stay in each; see `narrow`.

  Raises:
    ModelError: widths that do not fit the blocks.
  """
  before = model.mlp_dims
  if isinstance(widths, int | float | np.number):
    if not 0 <= widths <= 1:
      raise ModelError(
        f'narrow: widths={widths}: a share is from 0 to 1; for numbers of '
        'neurons give a list, one per block'
      )
    chosen = range(model.depth) if blocks is None else blocks
    indices = check_blocks(chosen, model.depth)
    least = [min(int(widths > 0), width) for width in before]
    after = {i: max(round(widths * before[i]), least[i]) for i in indices}
  elif isinstance(widths, Mapping | set) or getattr(widths, 'ndim', 1) != 1:
    raise ModelError(
      f'narrow: widths is a {type(widths).__name__} of another form: give a list'
    )
  else:
    widths = tuple(widths)
    if blocks is not None or len(widths) != model.depth:
      raise ModelError(
        f'narrow: {len(widths)} widths for {model.depth} blocks: give one per '
        'block, without `blocks`; or one share for the MLPs of `blocks`'
      )
    after = dict(enumerate(widths))
  for index, width in after.items():
    whole = isinstance(width, numbers.Integral) and type(width) is not bool
    if not whole or not 0 <= width <= before[index]:
      raise ModelError(
        f'narrow: width {width} of block {index}: give a whole number from 0 to '
        f'{before[index]}, what its MLP has'
      )
  return {i: int(width) for i, width in after.items() if width < before[i]}


def narrow_on(
  model: Model,
  dense: Model | None,
  images: ImageSet,
  widths: Mapping[int, int],
  options: NarrowOptions,
  memory_gib: float | None = None,
  on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Model, tuple[NeuronFit, ...]]:
  """`narrow` on images that were read, with a report on each MLP.

  `widths` has the blocks to narrow; `on_progress` is called with blocks done and
  blocks in all.
  """
  reference = model if dense is None else dense
  pairing = paired.pair(model, reference)
  paired.check_not_doubled(model, pairing, 'narrow')
  mlp_refit.check_images(images)
  # Refuses what cannot be narrowed before anything runs.
  narrow_mlps(model, {index: range(width) for index, width in widths.items()})
  if not widths:
    return model, ()
  first = min([*widths, pairing.first_short])
  here, there = paired.at_block(model, reference, images, first, memory_gib)
  fits = []
  for index in range(first, max(widths) + 1):
    here.run_attention(index)
    if index in widths:
      folds: list[CrossMoments] = []
      if widths[index]:
        if options.target == 'stream':
          there.run_to(pairing.targets[index])
        aims = there.streams if options.target == 'stream' else None
        folds = mlp_refit.hidden_moments(here, index, aims).folds
      model, fit = _narrowed(model, index, widths[index], folds, options.ridge)
      fits.append(fit)
      here.narrow(model, index)
    here.run_mlp(index)
    if on_progress is not None:
      on_progress(index + 1, max(widths) + 1)
  return model, tuple(fits)


def _narrowed(
  model: Model,
  index: int,
  width: int,
  folds: Sequence[CrossMoments],
  ridge: float | None,
) -> tuple[Model, NeuronFit]:
  """`model` with one narrower MLP; `folds` are empty where none stays."""
  if not width:
    return narrow_mlps(model, {index: ()}), NeuronFit(index, 0, 0.0, 1.0)
  name = block_name(index)
  params = model.params[name]
  whole = least_squares.merged(folds)
  least_squares.require_finite(f'block {index}', whole.in_out, whole.in_in)
  kernel = output_weights(params).kernel
  kept = removal_order(whole, kernel).kept(width)
  parts = [without_neurons(fold, kernel, kept) for fold in folds]
  if ridge is None:
    ridge = choose_ridge(parts)
  left = least_squares.merged(parts)
  correction = least_squares.solve(left, ridge)
  residual = least_squares.residual_share((left, correction))
  found = narrow_mlps(model, {index: kept})
  block = mlp_refit.corrected(found.params[name], correction)
  found = found.replace(params=found.params | {name: block})
  return found, NeuronFit(index, width, ridge, residual)


def output_weights(params: Params) -> AffineMap:
  """From the hidden layer to what a block's MLP adds to the stream.

  Args:
    params: of the block, not quantised; LayerScale is part of the map.
  """
  second = {
    name: np.asarray(leaf, np.float64)
    for name, leaf in params['mlp']['fc2'].items()
  }
  gamma = np.asarray(params.get('ls2', {}).get('gamma', 1.0), np.float64)
  return AffineMap(second['kernel'] * gamma, second['bias'] * gamma)


def repaired(
  params: Params, moments: CrossMoments, kept: np.ndarray, ridge: float
) -> Params:
  """The parameters of a block with some neurons, which make up for the others.

  Args:
    params: of the block, with the neurons that `moments` are of.
    moments: `mlp_refit.hidden_moments`, of all folds.
    kept: indices of the neurons that stay, ascending; at least one.
    ridge: see `least_squares.solve`.

  Returns:
    float32 arrays in `mlp.fc2`, on the host.
  """
  kernel = output_weights(params).kernel
  left = without_neurons(moments, kernel, kept)
  narrowed = params | {'mlp': surgery.take_neurons(params['mlp'], kept)}
  return mlp_refit.corrected(narrowed, least_squares.solve(left, ridge))


def without_neurons(
  moments: CrossMoments, kernel: np.ndarray, kept: np.ndarray
) -> CrossMoments:
  """Moments of the neurons that stay, and of what the stream lacks with them.

  Args:
    moments: of all neurons, and of what the stream lacks with all of them.
    kernel: `[hidden, embed]`, of `output_weights`.
    kept: indices of the neurons that stay.
  """
  missing = -kernel
  missing[kept] = 0.0
  change = AffineMap(missing, np.zeros(kernel.shape[1]))
  return moments.beyond(change).of_inputs(kept)


def removal_order(
  moments: CrossMoments,
  kernel: np.ndarray,
  ridge: float = ORDER_RIDGE,
  least: int = 0,
) -> Elimination:
  """Eliminates all neurons, each time one that the others replace best.

  Args:
    moments: of the hidden layer; of the outputs nothing is read.
    kernel: `[hidden, embed]`, of `output_weights`.
    ridge: added to the covariance, as a share of the mean variance.
    least: stops when so many are left, which come last in the order of their
      indices, without losses; an eighth of all takes a fifth of the time.
  """
  count = len(kernel)
  covariance = moments.in_in / max(moments.count, 1.0)
  mean = float(np.trace(covariance)) / count
  # Neurons that never change cost nothing, whatever their weights.
  covariance.flat[:: count + 1] += ridge * mean or 1.0
  inverse = scipy.linalg.inv(covariance, check_finite=False)
  weights = np.array(kernel, np.float64)
  present = np.arange(count)
  order: list[int] = []
  losses = [0.0]
  together = max(1, count // _PARTS)
  while len(present) > least:
    costs = np.square(weights).sum(axis=1) / np.diag(inverse)
    near = np.argsort(costs, kind='stable')[: 2 * together]
    number = min(together, len(present) - least)
    gone, steps = _cheapest(inverse[np.ix_(near, near)], weights[near], number)
    gone = near[gone]
    order += present[gone].tolist()
    losses += (losses[-1] + np.cumsum(steps)).tolist()
    left = np.delete(np.arange(len(present)), gone)
    across = inverse[np.ix_(gone, left)]
    # By rounding it may be not quite positive.
    share = scipy.linalg.solve(
      inverse[np.ix_(gone, gone)], across, assume_a='sym'
    )
    weights = weights[left] - share.T @ weights[gone]
    inverse = inverse[np.ix_(left, left)] - across.T @ share
    present = present[left]
  order += present.tolist()
  return Elimination(np.asarray(order), np.asarray(losses))


def _cheapest(
  inverse: np.ndarray, weights: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
  """The next `number` neurons to go, one by one, and what each costs.

  Without the updates in between, two neurons that replace each other would both
  go.

  Args:
    inverse: of the covariance of all, for some candidates.
    weights: of the candidates.
    number: how many of them go.
  """
  inverse, weights = inverse.copy(), weights.copy()
  present = np.ones(len(inverse), bool)
  gone, steps = [], []
  for _ in range(number):
    diagonal = np.where(present, np.diag(inverse), 1.0)
    costs = np.square(weights).sum(axis=1) / diagonal
    chosen = int(np.argmin(np.where(present, costs, np.inf)))
    gone.append(chosen)
    steps.append(costs[chosen])
    present[chosen] = False
    share = inverse[chosen] / inverse[chosen, chosen]
    weights -= np.outer(share, weights[chosen])
    inverse -= np.outer(share, inverse[chosen])
  return np.asarray(gone), np.asarray(steps)
