"""One budget over every part of a network: `compress`.

A greedy search. Each step scores parts with their repair in place, and takes the
one whose score grows least for what it saves,

  ratio = (score after - score now) / min(cost now - cost after, cost now - goal),

where the goal is the cost at the target, so that the last step does not pay for
more than was asked; on a tie that of the lowest block. A score is what the network's output has lost
(`scores`), a cost is in executed operations or in measured time (`costs`).

Repairs are made one at a time. So that those of earlier steps take later ones into
account, all MLPs after the first change are refitted from time to time, and at the
end of the path.

With `rescore='lazy'` a part keeps the growth that was last measured. Only the part
of least ratio is scored again, until the least one is of this step. If no growth
ever fell from step to step (if the score were supermodular in what is gone), that
would be the exact greedy search. Scores of networks nearly are, which makes it a
heuristic; `rescore='all'` is exact.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from lambda_vit_jax.analysis.blocks import in_float32
from lambda_vit_jax.analysis.images import Batches, ImageSet
from lambda_vit_jax.compression import costs, nose_path, steps
from lambda_vit_jax.compression.options import CompressOptions, names_of
from lambda_vit_jax.compression.parts import Part, unmerged
from lambda_vit_jax.compression.record import Compression, Step
from lambda_vit_jax.compression.search import OnScore, Search
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import warn_user
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import checks
from lambda_vit_jax.training_free import paired, polish

# MLPs are refitted each time that the network is so many times as fast again.
_SETTLE_EVERY = 1.15

OnStep = Callable[[Compression], None]


@dataclasses.dataclass(frozen=True)
class Listener:
  """What is called as a search goes on.

  Attributes:
    on_step: takes the path so far, after every new step.
    on_score: takes each part that was scored.
  """

  on_step: OnStep = lambda found: None
  on_score: OnScore = lambda part: None


@check_arguments
def compress(
  model: Model,
  batches: Batches,
  *,
  target_speedup: float = 1.5,
  parts: str | Sequence[str] = ('attention', 'neurons', 'blocks'),
  criterion: str = 'output',
  cost: str = 'macs',
  target: str = 'logits',
  inputs: str | Sequence[str] | None = None,
  repair: bool = True,
  ridge: float | str = 'auto',
  rescore: str = 'lazy',
  finetune: int | None = None,
  dense: Model | None = None,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
  resume: Compression | None = None,
  on_step: OnStep = lambda found: None,
  warn: Callable[[str], None] = warn_user,
) -> Compression:
  """Makes a network so many times as fast, with the parts that it needs least.

  Greedy: each step takes the part whose loss is the smallest for what it saves,
  with its repair in place, and repairs it (docs/compression.md#one-budget). Labels are
  not used.

  Args:
    model: finished, without token merging; not changed. It may lack parts.
    batches: normalised NHWC arrays, or what else `images.read_images` takes; 512
      images are enough for most networks. Three quarters are fitted on, the
      others score.
    target_speedup: of the cost, against `dense`; above 1.
    parts: of `attention`, `neurons` (of MLPs, an eighth at a time), `mlps`,
      `blocks` and `tokens` (that merge, a thirty-second of the patches at a
      time). The closed forms are fitted without the merging.
    criterion: `output`, how far the output is from the dense one; or
      `transfer_entropy`, in nats.
    cost: `macs`, operations that are executed; or `time`, measured per kind of
      block on the device at hand.
    target: `logits`, or `features` (of the class token), which also stand for
      the logits of a head with a single class.
    inputs: of the maps that take the place of attention, by name as for
      `linearize`; by default token, mean and class_map. With `()` nothing takes
      it.
    repair: whether anything makes up for what goes. Without, with attention as
      the only part and `transfer_entropy`, the search is that of `nose`.
    ridge: penalty of the repairs, see `least_squares.solve`; `auto` chooses.
    rescore: `lazy` scores few parts again in each step, `all` every one.
    finetune: steps of `polish` on the end of the path, with the same images;
      the errors in `.steps` are those before. `lv.dilute(model, train_batches,
      found.model, …)` is for more images, or labels.
    dense: the network to compare with and to repair towards, where parts of
      `model` are gone already; by default `model`.
    memory_gib: memory for activations per device; by default a share of what
      the device has. With little of it, blocks run more often.
    mesh: devices that share the images; see `images.read_images`.
    resume: an earlier search as passed to `on_step`, or read from a file: its
      steps are made again without a search, up to the target.
    on_step: called after every step with the path so far.
    warn: takes one line; a Python warning by default.

  Returns:
    The whole path: `.model` is its end, `.at(1.3)` a network on the way, and
    `.steps` say what went and what that cost.

  Raises:
    UsageError: an unknown name, inputs `auto`, a budget out of reach (says the
      largest), or a search that `resume` is not part of.
    DataError: too few images, or images of the wrong shape.
    ModelError: two models that are not of one network, one that is quantised,
      merges tokens or segments, or activations that are not finite.
  """
  options = CompressOptions(
    target_speedup=target_speedup,
    parts=names_of(parts),
    criterion=criterion,
    target=target,
    cost=cost,
    inputs=None if inputs is None else names_of(inputs),
    repair=repair,
    ridge=ridge,
    rescore=rescore,
    finetune=finetune,
    memory_gib=memory_gib,
  )
  return run(
    model,
    batches,
    options,
    dense=dense,
    mesh=mesh,
    resume=resume,
    listener=Listener(on_step=on_step),
    warn=warn,
  )


def run(
  model: Model,
  batches: Batches,
  options: CompressOptions,
  *,
  dense: Model | None = None,
  mesh: Mesh | None = None,
  resume: Compression | None = None,
  listener: Listener = Listener(),
  warn: Callable[[str], None] = warn_user,
) -> Compression:
  """`compress` with its options as one object; see there."""
  options = options.checked(model)
  dense = model if dense is None else dense
  pairing = paired.pair(model, dense)
  if options.repair:
    paired.check_not_doubled(model, pairing, 'compress')
  cost = costs.make(options.cost, {} if resume is None else resume.timings)
  steps.check_reach(model, dense, options, cost)
  images = checks.enough_images(model, batches, mesh, warn, 'compress')
  if options.finetune:
    # Before the search, which may take long.
    paired.check_not_doubled(model, pairing, 'compress(finetune=…)')
    paired.check_images(images, 'polish on')
  found = steps.start(model, dense, options, images.total, cost)
  before = steps.earlier(found, resume)
  if resume is not None:
    found = dataclasses.replace(
      found, evaluations=resume.evaluations, timings=resume.timings
    )
  # Products too: accelerators round their float32 factors by default.
  with jax.default_matmul_precision('highest'):
    if options.is_nose:
      found = nose_path.walk(
        found, before, images, options, cost, listener.on_step
      )
    else:
      exact = in_float32(model)
      reference = exact if dense is model else in_float32(dense)
      search = Search(exact, reference, images, options, cost)
      found = steps.scored(found, search.score)
      found = _again(found, search, before)
      if resume is not None and len(found.steps) == len(before):
        found = dataclasses.replace(found, pending=resume.pending)
        search.growth = steps.growth_of(resume)
      found = _walk(found, search, listener)
  if options.finetune and unmerged(found.model).module == dense.module:
    warn('compress.finetune: only tokens merged, so there is nothing to polish')
  elif options.finetune:
    found = _finetuned(found, dense, images, options.finetune)
  return found


def _finetuned(
  found: Compression, dense: Model, images: ImageSet, count: int
) -> Compression:
  """The path, with so many steps of `polish` on its last network.

  Like all fits, they look at the network in which no tokens merge.
  """
  mesh = images.placement.mesh
  last = found.model
  model = polish.polish(
    unmerged(last),
    dense,
    list(images.images),
    steps=count,
    batch_size=-(-polish.BATCH_SIZE // mesh.size) * mesh.size,
    # As docs/results.md measured it.
    crop_area=1.0,
    mesh=mesh,
  )
  model = model.replace(module=last.module)
  return dataclasses.replace(found, models=(*found.models[:-1], model))


def _again(
  found: Compression, search: Search, before: Sequence[Step]
) -> Compression:
  """Makes the steps of an earlier search again, as far as they are needed."""
  for step in before:
    if found.reached >= found.target_speedup:
      break
    part = Part(step.block, step.part)
    steps.check_possible(part, search.savings())
    model = steps.applied(found.model, search.take(part, step.error))
    ends = found.speedup(step) >= found.target_speedup
    last = ends or step is before[-1]
    # Before a refit that the earlier search did not try, or did not keep.
    if last and not step.settled:
      steps.check_same(step, search.measured())
    tries = bool(step.settled) or (
      search.repairs and ends and step.settled is None
    )
    found = _extended(found, search, step, model, tries)
    if last and step.settled:
      steps.check_same(step, search.measured())
  return found


def _walk(
  found: Compression,
  search: Search,
  listener: Listener,
) -> Compression:
  """Takes part after part until the target is reached."""
  spent = found.evaluations
  while found.reached < found.target_speedup:
    began = time.perf_counter()
    part, measured = search.choose(listener.on_score)
    model = steps.applied(found.model, search.take(part, measured[part]))
    seconds = time.perf_counter() - began
    step = steps.step_of(model, part, measured, search.cost, seconds)
    due = min(found.target_speedup, _SETTLE_EVERY * steps.settled_at(found))
    settles = search.repairs and found.speedup(step) >= due
    found = dataclasses.replace(
      _extended(found, search, step, model, settles),
      evaluations=spent + search.evaluations,
      timings=getattr(search.cost, 'known', {}),
    )
    listener.on_step(found)
  return found


def _extended(
  found: Compression, search: Search, step: Step, model: Model, settles: bool
) -> Compression:
  """The path with one more step, after which the MLPs may be refitted."""
  if settles:
    blocks = search.settle(always=bool(step.settled))
    model = steps.with_blocks(model, blocks)
    step = dataclasses.replace(step, settled=bool(blocks), error=search.score)
  return steps.extended(found, step, model, search.growth)
