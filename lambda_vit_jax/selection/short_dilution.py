"""Short dilutions: how good a set of layers is once the network has adapted.

Scores of an untouched network mislead (HetDPT): what a layer is worth shows
after the rest has had some steps to make up for it. `ShortDilution` takes any
set of layers from one shared start through a few hundred steps. Every block
with attention is in mode `diluted` and λ is an array `[depth]`, 1 where the
attention stays, so that one compilation serves every set and every length.
`successive_halving` spends the steps on the sets that do well (Jamieson and
Talwalkar, arXiv 1502.07943).
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

Batch = Mapping[str, Array]

# Of the steps; the rest is for settling at λ = 0, as in the published 300+100.
DILUTION_SHARE = 0.75
_WARMUP_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Schedule:
  """λ and learning rate of a short dilution, as arrays over its steps.

  Attributes:
    dilution_factor: `[steps]` λ of the layers in question, 1 at the start.
    learning_rate: `[steps]`, a short warm-up and a cosine.
  """

  dilution_factor: np.ndarray
  learning_rate: np.ndarray

  @classmethod
  def of(cls, steps: int, peak: float) -> 'Schedule':
    """The schedule of `steps` steps with peak learning rate `peak`.

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
    return cls(
      np.asarray(factor(at), np.float32), np.asarray(rate(at), np.float32)
    )


class ShortDilution:
  """Trains any set of layers away from one shared start, and scores it."""

  def __init__(
    self,
    model: Model,
    settings: Mapping[str, Any],
    make_batches: Callable[[], Iterator[Batch]],
    test_batches: Sequence[Batch],
    mesh: Mesh | None = None,
  ):
    """Prepares; nothing is compiled before the first call.

    Args:
      model: the shared start.
      settings: the config's section `dilute`: the optimizer's keys,
        `learning_rate`, `label_smoothing` and `compensation`.
      make_batches: called for every set; an endless iterator of normalised
        `image` and `label`, the same each time. Labels are of images or, for
        a model that segments, of pixels.
      test_batches: `image`, `label` and `mask`, for the score.
      mesh: devices that share every batch; of each, the batches hold this
        process's part. One device by default.
    """
    modes = dilution.diluted_modes(range(model.depth), model.attention_modes)
    self._module = model.module.clone(
      attention_modes=modes, compensation=bool(settings['compensation'])
    )
    own = sum(int(b['mask'].sum()) for b in test_batches)
    self.num_test_images = own if mesh is None else sum(processes.gather(own))
    if mesh is None:
      place = _on_device
      self._params = model.params
    else:
      place = functools.partial(sharding.put_batch, mesh=mesh)
      # Through the host: restored arrays are committed to one device.
      self._params = jax.device_put(
        jax.tree.map(np.array, model.params), sharding.replicated(mesh)
      )
    self._peak = float(settings['learning_rate'])
    self._make_batches = make_batches
    self._place = place
    # On the host: images and maps of a whole slice are gigabytes.
    self._test = list(test_batches)
    # The rate is an argument of the step: the chain ends in a gradient
    # direction, and one program serves every schedule.
    self._optimizer = optim.make_optimizer(
      settings, lambda _: jnp.ones(()), model.depth
    )
    smoothing = settings['label_smoothing']
    self._step = compilation.Program(
      functools.partial(_step, self._module, self._optimizer, smoothing),
      donate_argnums=0,
    )
    counter, self._summarize = (
      (counts.evaluation_counts, summarize)
      if model.module.segmentation is None
      else (counts.pixel_counts, confusion.summarize)
    )
    self._counts = compilation.Program(
      functools.partial(counts_of, counter, self._module),
      **({} if mesh is None else {'out_shardings': sharding.replicated(mesh)}),
    )

  def train(self, layers: Iterable[int], steps: int) -> Params:
    """Dilutes `layers` within `steps` steps from the shared start.

    Returns:
      All parameters; those of the diluted attentions have no effect any more.
    """
    layers = tuple(layers)
    schedule = Schedule.of(steps, self._peak)
    # A copy: the step donates its state.
    params = jax.tree.map(jnp.array, self._params)
    state = (params, self._optimizer.init(params))
    batches = self._make_batches()
    for index in range(steps):
      state = self._step(
        state,
        self._place(next(batches)),
        self._factor(layers, schedule.dilution_factor[index]),
        schedule.learning_rate[index],
      )
    # A pipeline's iterator has threads or processes to stop.
    getattr(batches, 'close', lambda: None)()
    return state[0]

  def score(
    self, layers: Iterable[int], params: Params | None = None
  ) -> dict[str, float]:
    """`loss`, `num_images` and more with `layers` removed.

    See `evaluate.summarize`, and `confusion.summarize` where it segments.

    Args:
      layers: at λ = 0: `identity`, or `skip` without compensation.
      params: what `train` returned; the shared start by default.
    """
    params = self._params if params is None else params
    factor = self._factor(tuple(layers), 0.0)
    return self._summarize(
      self._counts(params, self._place(batch), factor) for batch in self._test
    )

  def _factor(self, layers: Trial, factor: float) -> Array:
    return dilution.factor_vector(factor, layers, self._module.depth)


def _on_device(batch: Batch) -> dict[str, Array]:
  return {name: jnp.asarray(value) for name, value in batch.items()}


def _step(
  module: Any,
  optimizer: optax.GradientTransformation,
  smoothing: float,
  state: tuple[Params, Any],
  batch: Batch,
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
    steps: of each short dilution.
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
  on_rung: Callable[[Rung], None] = lambda rung: None,
) -> list[Rung]:
  """Rates sets of layers, giving the better half twice the steps each time.

  Args:
    sets: candidates; equal ones count once.
    evaluate: takes a set and a number of steps to its loss; less is better.
    steps: of the first rung.
    on_rung: called after every rung.

  Returns:
    The rungs; the last one has a single set or two, and its best is the
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
    on_rung(rung)
    if len(left) <= 2:
      return rungs
    left = sorted(rung.ranking[: math.ceil(len(left) / 2)])
    steps *= 2
