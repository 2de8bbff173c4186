"""Evaluate all trials of a search round in one pass over the blocks.

A trial is the network without the attention of some blocks (x stays x), or with
an affine map in its place (`TrialRunner.use_maps`). Trials with the same blocks
so far share their stream: a round of NOSE starts with one stream, and the trial
of block l branches off at block l. A layer that a trial leaves out costs no
attention. From the last block that mixes tokens on, only the tokens that the
readout reads are computed.

Streams are processed in micro-batches of one fixed shape, as large as the memory
budget allows. A search of any length compiles four functions: the embedding, a
block, a block without attention, and the tail with the moments of the target.
(Blocks whose norms have another epsilon, as in folded models, or in mode
`linear` need their own.)
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.analysis import memory, moments
from lambda_vit_jax.analysis.blocks import BlockRunner, check_finished
from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.analysis.moments import HostMoments, Moments
from lambda_vit_jax.core.errors import (
  DataError,
  ModelError,
  UsageError,
  not_finite,
)
from lambda_vit_jax.core.images import check_classes
from lambda_vit_jax.core.typing import Array, AttentionMode, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.build import forward
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import MODES, block_name
from lambda_vit_jax.selection import trial_readout
from lambda_vit_jax.selection.options import OnImages
from lambda_vit_jax.selection.trial_readout import Target

Trial = tuple[int, ...]
"""The blocks whose attention is left out (or replaced), ascending."""

# The bootstrap needs the moments of each shard of the images.
_SHARDS = 32


class TrialRunner:
  """Evaluates trials of a model on a set of images.

  Attributes:
    micro_batch: images in one call, over all devices.
    block_evaluations: blocks run so far, per image, without embedding and
      readout.
    images: the images of all processes.
  """

  def __init__(
    self,
    model: Model,
    images: ImageSet,
    target: Target = 'logits',
    memory_gib: float | None = None,
  ):
    """Places the parameters and chooses the micro-batch.

    Args:
      model: no block in mode `diluted` or `skip`.
      images: see `images.read_images`.
      target: `logits`, `features`, `loss` or `correct` (per image; need
        labels), or an error per image, for which the labels are the outputs
        that it is measured from (`trial_readout.target_values`).
      memory_gib: activations held at a time, per device; by default a share
        of the device's memory.

    Raises:
      ModelError: a block in mode `diluted` or `skip`.
      DataError: `loss` or `correct` without labels or head; `loss` with one
        class, or with labels that are no classes of the model.
      UsageError: an unknown target, or a budget too small for one image.
    """
    _check(model, images, target)
    self._runner = BlockRunner(model, images.placement)
    module = self._runner.module
    self.images = images.total
    self.block_evaluations = 0
    self.micro_batch = memory.micro_batch_size(module, images, memory_gib)
    self._module = module
    self._image_set = images
    self._target: Target = target
    self._place = images.placement
    self._shards = max(
      n for n in range(1, _SHARDS + 1) if self.micro_batch % n == 0
    )
    self._channels = 1
    if target in ('logits', 'features'):
      self._channels = module.embed_dim
    if target == 'logits' and module.num_classes:
      self._channels = module.num_classes

  def use_maps(self, maps: Mapping[int, Params]) -> None:
    """See `BlockRunner.use_maps`."""
    self._runner.use_maps(maps)

  def evaluate(
    self,
    trials: Iterable[Trial],
    on_progress: OnImages | None = None,
  ) -> dict[Trial, HostMoments]:
    """Measures the moments of the target per trial and shard of the images.

    Args:
      trials: blocks to leave out, relative to the model as it is.
      on_progress: called with images done and images in all.

    Returns:
      Per trial float64 moments with one leading axis, the shards.

    Raises:
      ModelError: an activation is NaN or infinite; the block is named.
    """
    trials = sorted({tuple(sorted(trial)) for trial in trials})
    # So many trials at a time that their streams fit in the budget.
    width = self._module.depth + 1
    found: dict[Trial, HostMoments] = {}
    for start in range(0, len(trials), width):
      found |= self._evaluate(trials[start : start + width], on_progress)
    return found

  def _evaluate(
    self,
    trials: Sequence[Trial],
    on_progress: OnImages | None,
  ) -> dict[Trial, HostMoments]:
    # Small micro-batches have few shards each; then several take turns.
    turns = -(-_SHARDS // self._shards)
    states = [
      {trial: self._no_moments() for trial in trials} for _ in range(turns)
    ]
    batches = self._image_set.micro_batches(self.micro_batch)
    for index, batch in enumerate(batches):
      now = states[index % turns]
      evaluated = self._run(batch, now)
      jax.block_until_ready(now)
      if on_progress is not None:
        done = (index + 1) * self.micro_batch
        on_progress(min(done, self.images), self.images)
    self.block_evaluations += evaluated
    found = {
      trial: jax.tree.map(
        lambda *leaves: np.concatenate(leaves),
        *(moments.to_host(state[trial]) for state in states),
      )
      for trial in trials
    }
    for trial, measured in found.items():
      if not np.isfinite(measured.m2).all():
        self._raise_not_finite(trial)
    return found

  def _no_moments(self) -> Moments:
    state: Moments = self._place.replicate(
      moments.empty(self._channels, (self._shards,))
    )
    return state

  def _run(
    self, batch: Mapping[str, Array], states: dict[Trial, Moments]
  ) -> int:
    """Runs a micro-batch, and updates `states`; returns block evaluations."""
    depth = self._module.depth
    last = self._last_mixing_block(states)
    evaluated = 0
    x, narrow = self._runner.embed(batch['image'])
    streams: dict[Trial, tuple[Array, Array]] = {(): (x, narrow)}
    del x
    for index in range(depth):
      # The trials up to this block, by what they are up to the one before.
      children: dict[Trial, list[Trial]] = {}
      for trial in states:
        prefix = tuple(i for i in trial if i <= index)
        parent = tuple(i for i in prefix if i < index)
        if prefix not in children.setdefault(parent, []):
          children[parent].append(prefix)
      grown = {}
      for parent, prefixes in children.items():
        pair = streams.pop(parent)
        for prefix in prefixes:
          evaluated += 1
          removed = index in prefix
          if index < last:
            x = self._runner.run(index, pair[0], removed)
            grown[prefix] = (x, narrow)
            del x
            continue
          ends = index == depth - 1
          read, state = self._run_tail(
            index,
            removed,
            pair,
            batch,
            states[prefix] if ends else self._no_moments(),
            use_stream=index == max(last, 0),
          )
          grown[prefix] = (pair[0], read)
          if ends:
            states[prefix] = state
        del pair
      streams = grown
    return evaluated

  def _last_mixing_block(self, trials: Collection[Trial]) -> int:
    """The last block that mixes tokens in any trial; -1 for none."""
    mixing = (
      index
      for index in range(self._module.depth)
      for removed in {index in trial for trial in trials}
      if self._runner.block(index, removed)[0].mixes_tokens
    )
    return max(mixing, default=-1)

  def _run_tail(
    self,
    index: int,
    removed: bool,
    streams: tuple[Array, Array],
    batch: Mapping[str, Array],
    state: Moments,
    use_stream: bool,
  ) -> tuple[Array, Moments]:
    """A block on the read tokens; see `trial_readout.run_tail`."""
    runner = self._runner
    mode = runner.mode(index, removed)
    row = MODES[mode]
    kind: AttentionMode = 'linear' if mode == 'linear' else 'full'
    # A block without attention passes those of one that has it, unused, so
    # that all calls share one program.
    source = index
    if row.adds_nothing:
      source, removed = self._module.attention_modes.index('full'), False
    mlp, mlp_params = runner.mlp(index)
    block, params = runner.block(source, removed)
    if kind == 'full':
      block = pieces.block_of(self._module, source, kind)
    stem, stem_params = runner.stem
    return trial_readout.run_tail(
      trial_readout.Tail(
        block,
        mlp,
        stem,
        self._target,
        self._place,
      ),
      (params, mlp_params, stem_params),
      trial_readout.TailSwitches(
        np.float32(row.scales()[0]),
        np.bool_(row.has_attention),
        np.bool_(use_stream),
        np.bool_(index == self._module.depth - 1),
      ),
      streams,
      {'label': batch['label'], 'mask': batch['mask']},
      state,
    )

  def _raise_not_finite(self, trial: Trial) -> None:
    """Finds the first block whose output is not finite, and names it."""
    runner = self._runner
    modes = tuple(
      runner.mode(index, index in trial) for index in range(self._module.depth)
    )
    module = self._module.clone(
      attention_modes=modes,
      linear_inputs=tuple(
        runner.block(index, index in trial)[0].linear_inputs
        for index in range(self._module.depth)
      ),
    )
    params = runner.params | {
      block_name(index): runner.block(index, removed=True)[1] for index in trial
    }
    how = 'replaced' if 'linear' in [modes[i] for i in trial] else 'left out'
    context = f' with the attention of {list(trial)} {how}' * bool(trial)
    for batch in self._image_set.micro_batches(self.micro_batch):
      _, taps = forward(module, params, batch['image'], capture=True)
      streams = {'the embedding': taps['embedding']}
      for index in range(module.depth):
        streams[f'block {index}'] = taps[block_name(index)]['output']
      for name, stream in streams.items():
        if not bool(jnp.isfinite(stream).all()):
          raise not_finite(name, context)
    raise ModelError(
      f'values of the {self._target} are NaN or infinite{context}; check the head'
    )


def _check(model: Model, images: ImageSet, target: str) -> None:
  """See `TrialRunner`."""
  if target not in get_args(Target):
    raise UsageError(
      f'select.target={target!r} is not known; use logits or features'
    )
  check_finished(model, 'a search')
  if target in ('loss', 'correct') and (
    images.labels is None or not model.module.num_classes
  ):
    what = 'the criterion loss_increase' if target == 'loss' else 'accuracy'
    raise DataError(
      f'{what} needs a label for every image and a model with a head; give '
      'batches as dicts with image and label'
    )
  if target == 'loss':
    if model.num_classes < 2:
      raise DataError(
        'the criterion loss_increase compares classes, and the head has one; use '
        'transfer_entropy or output'
      )
    for labels in images.labels or ():
      check_classes(labels, model.num_classes, 'loss_increase: labels are')
