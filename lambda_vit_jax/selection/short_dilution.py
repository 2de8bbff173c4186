"""Rate sets of layers by short dilutions, in successive halving.

Scores of the unmodified network can mislead (HetDPT): the worth of a layer
shows once the others have had some steps to adapt to its removal.
`ShortDilution` dilutes any set of layers from one shared start within a few
hundred steps. Every block with attention is in mode `diluted` and λ is an array
`[depth]`, 1 where the attention stays, so that one compilation serves every set
and every length. `successive_halving` spends more steps on the better sets
(Jamieson and Talwalkar, arXiv 1502.07943).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.evaluation import confusion, counts
from lambda_vit_jax.evaluation.accuracy import counts_of, summarize
from lambda_vit_jax.models.build import apply_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import compilation, processes, sharding
from lambda_vit_jax.selection.trials import Trial
from lambda_vit_jax.training import dilution, losses, optim

Batch = Mapping[str, np.ndarray]

# Share of the steps; in the others λ is 0, as in the published 300 + 100.
DILUTION_SHARE = 0.75
_WARMUP_SHARE = 0.05


def make_schedule(steps: int, peak: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns λ of the diluted layers and the learning rate, both `[steps]`.

  λ falls from 1 to 0; the learning rate is a short warm-up to `peak` and a
  cosine.

  Raises:
    UsageError: fewer than two steps.
  """
  if steps < 2:
    raise UsageError(f'a short dilution needs 2 steps or more, not {steps}')
  diluting = max(1, math.floor(DILUTION_SHARE * steps))
  factor = dilution.dilution_schedule(diluting)
  rate = optim.learning_rate_schedule(
    peak, steps, math.floor(_WARMUP_SHARE * steps), 0.02 * peak
  )
  at = np.arange(steps, dtype=np.float32)
  return np.asarray(factor(at), np.float32), np.asarray(rate(at), np.float32)


class ShortDilution:
  """Dilutes any set of layers from one shared start, and scores the result."""

  def __init__(
    self,
    model: Model,
    settings: Mapping[str, Any],
    make_batches: Callable[[], Iterator[Batch]],
    test_batches: Sequence[Batch],
    mesh: Mesh | None = None,
  ):
    """Prepares; the first call compiles.

    Args:
      model: the shared start.
      settings: the config's section `dilute`: the optimizer's keys,
        `learning_rate`, `label_smoothing` and `compensation`.
      make_batches: called for every set; returns an endless iterator of
        normalised `image` and `label`, the same each time. Labels are of
        images or, for a segmentation model, of pixels.
      test_batches: `image`, `label` and `mask`, for the score.
      mesh: devices that share every batch, of which each process passes its
        part; one device by default.
    """
    if mesh is None:
      mesh = Mesh(np.asarray([jax.devices()[:1]]), sharding.BATCH_AXES)
    modes = dilution.diluted_modes(range(model.depth), model.attention_modes)
    self._module = model.module.clone(
      attention_modes=modes, compensation=bool(settings['compensation'])
    )
    self.num_test_images = sum(
      processes.gather(sum(int(b['mask'].sum()) for b in test_batches))
    )
    self._everywhere = sharding.replicated(mesh)
    self._params = sharding.replicate(model.params, mesh)
    self._peak = float(settings['learning_rate'])
    self._make_batches = make_batches
    self._place = functools.partial(sharding.put_batch, mesh=mesh)
    # Kept on the host: together, images and maps can take gigabytes.
    self._test = list(test_batches)
    # The learning rate is an argument of the step, which multiplies by it, so
    # that one program serves every schedule.
    self._optimizer = optim.make_optimizer(
      settings, lambda _: jnp.ones(()), model.depth
    )
    smoothing = settings['label_smoothing']
    self._step = compilation.Program(
      functools.partial(_step, self._module, self._optimizer, smoothing),
      donate_argnums=0,
    )
    self._summarize: Callable[[Any], dict[str, Any]]
    counter, self._summarize = (
      (counts.evaluation_counts, summarize)
      if model.module.segmentation is None
      else (counts.pixel_counts, confusion.summarize)
    )
    self._counts = compilation.Program(
      functools.partial(counts_of, counter, self._module),
      out_shardings=self._everywhere,
    )

  def train(self, layers: Iterable[int], steps: int) -> Params:
    """Dilutes `layers` within `steps` steps from the shared start.

    Returns:
      All parameters; those of the diluted attention have no effect any more.
    """
    layers = tuple(layers)
    factors, rates = make_schedule(steps, self._peak)
    # A copy: the step donates its state.
    params = jax.tree.map(jnp.array, self._params)
    # As the step returns it: another placement would compile the step again.
    state = jax.device_put(
      (params, self._optimizer.init(params)), self._everywhere
    )
    batches = self._make_batches()
    for factor, rate in zip(factors, rates, strict=True):
      batch = self._place(next(batches))
      state = self._step(state, batch, self._factor(layers, factor), rate)
    # Stops the threads or processes of a pipeline.
    getattr(batches, 'close', lambda: None)()
    return state[0]

  def score(
    self, layers: Iterable[int], params: Params | None = None
  ) -> dict[str, float]:
    """`loss`, `num_images` and more with `layers` removed.

    See `accuracy.summarize` and, for segmentation, `confusion.summarize`.

    Args:
      layers: at λ = 0: `identity`, or `skip` without compensation.
      params: the result of `train`; the shared start by default.
    """
    params = self._params if params is None else params
    factor = self._factor(tuple(layers), 0.0)
    return self._summarize(
      self._counts(params, self._place(batch), factor) for batch in self._test
    )

  def _factor(self, layers: Trial, factor: float) -> Array:
    return dilution.factor_vector(factor, layers, self._module.depth)


def _step(
  module: Any,
  optimizer: optax.GradientTransformation,
  smoothing: float,
  state: tuple[Params, Any],
  batch: Mapping[str, Array],
  dilution_factor: Array,
  learning_rate: Array,
) -> tuple[Params, Any]:
  params, opt_state = state

  def loss(params: Params) -> Array:
    logits, _ = apply_module(
      module,
      params,
      batch['image'],
      dilution_factor=dilution_factor,
      capture=False,
    )
    return losses.label_loss(logits, batch['label'], smoothing)

  gradients = jax.grad(loss)(params)
  updates, opt_state = optimizer.update(gradients, opt_state, params)
  updates = jax.tree.map(lambda u: u * learning_rate, updates)
  return optax.apply_updates(params, updates), opt_state


@dataclasses.dataclass(frozen=True)
class Rung:
  """One round of successive halving.

  Attributes:
    steps: steps of each short dilution.
    scores: held-out loss per set, in nats per image or pixel.
  """

  steps: int
  scores: dict[Trial, float]

  @property
  def ranking(self) -> list[Trial]:
    """The sets, best first; the lexicographically first on a tie."""
    return sorted(self.scores, key=lambda layers: (self.scores[layers], layers))


def successive_halving(
  sets: Iterable[Trial],
  evaluate: Callable[[Trial, int], float],
  steps: int,
) -> list[Rung]:
  """Rates sets of layers; each rung gives the better half twice the steps.

  Args:
    sets: candidates; equal ones count once.
    evaluate: maps a set and a number of steps to its loss; less is better.
    steps: of the first rung.

  Returns:
    The rungs; the best set of the last one, which has one or two, is the
    choice.

  Raises:
    UsageError: no sets.
  """
  left = sorted({tuple(sorted(layers)) for layers in sets})
  if not left:
    raise UsageError('no candidate sets of layers to choose from')
  rungs = []
  while True:
    rung = Rung(steps, {layers: evaluate(layers, steps) for layers in left})
    rungs.append(rung)
    if len(left) <= 2:
      return rungs
    left = sorted(rung.ranking[: math.ceil(len(left) / 2)])
    steps *= 2
