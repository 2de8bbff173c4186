"""Many variants of one network over the same images, block by block.

METHOD, section 4. A variant is the network with the attention of some blocks
left out (mode `skip`: x stays x), or replaced by an affine map where there is
one (mode `linear`, see `TrialRunner.use_maps`). Variants that agree in the
blocks below share their stream: a round of NOSE starts with one stream, and
the candidate of block l joins at block l. A layer that a variant leaves out
costs no attention. From the last block that mixes tokens on, only the tokens
that the readout reads are computed.

Streams are a list of micro-batches of one fixed shape, on every backend: on
an accelerator a micro-batch is as large as the memory budget allows, which
fills the device as stacking the variants would and compiles nothing anew.
Four functions are compiled for a whole search of any length: embedding,
block, block without attention, and the end of the network with the moments
of what it puts out. Parameters are arguments. (Blocks that differ in their
norm's epsilon, as in folded models, or in mode `linear` need their own.)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.analysis import blocks, memory, moments
from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.analysis.moments import HostMoments, Moments
from lambda_vit_jax.core.errors import (
  DataError,
  ModelError,
  UsageError,
  not_finite,
)
from lambda_vit_jax.core.typing import Array, AttentionMode, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.build import forward
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name, mixes_tokens
from lambda_vit_jax.selection import trial_readout
from lambda_vit_jax.selection.trial_readout import Target

Trial = tuple[int, ...]
"""The blocks whose attention is left out (or replaced), ascending."""

# Shards of the images, whose moments are kept apart for the bootstrap.
_SHARDS = 32


class TrialRunner:
  """Evaluates variants of a model on a set of images.

  Attributes:
    micro_batch: images in one call, over all devices.
    block_evaluations: blocks run so far, per image: the embedding and the
      readout are not counted.
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
      target: `logits`, `features`, or `loss` (per image; needs labels).
      memory_gib: activations held at a time, per device; by default a share
        of the device's memory.

    Raises:
      ModelError: a mode that is none of a finished model.
      DataError: `loss` without labels or head.
      UsageError: an unknown target, or a budget too small for one image.
    """
    module = model.module
    if target not in ('logits', 'features', 'loss'):
      raise UsageError(
        f'select.target={target!r} is not known; use logits or features'
      )
    for index, mode in enumerate(module.attention_modes):
      if mode in ('diluted', 'skip'):
        raise ModelError(
          f'block {index} is in mode {mode!r}; a search starts from full, '
          'identity, absent or linear blocks'
        )
    if target == 'loss' and (images.labels is None or not module.num_classes):
      raise DataError(
        'the criterion loss_increase needs a label for every image and a '
        'model with a head; give batches as dicts with image and label'
      )
    self.images = images.total
    self.block_evaluations = 0
    self.micro_batch = memory.micro_batch_size(module, images, memory_gib)
    self._model = model
    self._set = images
    self._target: Target = target
    self._place = images.placement
    self._params = self._place.replicate(model.params)
    self._stem = pieces.stem_of(module)
    self._outer = pieces.stem_params(self._params, module.depth)
    self._shards = _largest_divisor(self.micro_batch, _SHARDS)
    channels = {
      'logits': module.num_classes or module.embed_dim,
      'features': module.embed_dim,
      'loss': 1,
    }
    self._channels = channels[target]
    self._maps: dict[int, Params] = {}

  def use_maps(self, maps: Mapping[int, Params]) -> None:
    """From now on, what variants have in place of the attention they lack.

    Args:
      maps: per block the parameters of its `attn` in mode `linear`, of the
        model's `linear_inputs`; a block that is not in it is left out.
    """
    self._maps = {
      index: pieces.mlp_params(self._params, index)
      | {'attn': self._place.replicate(fitted)}
      for index, fitted in maps.items()
    }

  def evaluate(
    self,
    variants: Iterable[Trial],
    on_progress: Callable[[int, int], None] | None = None,
  ) -> dict[Trial, HostMoments]:
    """Moments of the target per variant, apart for each shard of the images.

    Args:
      variants: blocks to leave out, relative to the model as it is.
      on_progress: called with images done and images in all.

    Returns:
      Per variant float64 moments with one leading axis, the shards.

    Raises:
      ModelError: an activation is NaN or infinite; the block is named.
    """
    variants = sorted({tuple(sorted(variant)) for variant in variants})
    # Few enough variants at a time that their streams fit in the budget.
    width = self._model.depth + 1
    found: dict[Trial, HostMoments] = {}
    for start in range(0, len(variants), width):
      chunk = variants[start : start + width]
      found |= self._evaluate(chunk, on_progress)
    return found

  def _evaluate(
    self,
    variants: Sequence[Trial],
    on_progress: Callable[[int, int], None] | None,
  ) -> dict[Trial, HostMoments]:
    # Small micro-batches have few shards each; then several take turns.
    turns = -(-_SHARDS // self._shards)
    states = {
      (variant, turn): self._place.replicate(
        moments.empty(self._channels, (self._shards,))
      )
      for variant in variants
      for turn in range(turns)
    }
    done = 0
    for index, batch in enumerate(self._set.micro_batches(self.micro_batch)):
      turn = index % turns
      now = {variant: states[variant, turn] for variant in variants}
      evaluated = self._run(batch, now)
      states |= {(variant, turn): state for variant, state in now.items()}
      done = min(done + self.micro_batch, self.images)
      jax.block_until_ready(now)
      if on_progress is not None:
        on_progress(done, self.images)
    self.block_evaluations += evaluated
    found = {}
    for variant in variants:
      found_now = HostMoments.concatenated(
        [moments.to_host(states[variant, turn]) for turn in range(turns)]
      )
      if not np.isfinite(found_now.m2).all():
        self._raise_not_finite(variant)
      found[variant] = found_now
    return found

  def _run(
    self, batch: Mapping[str, Array], states: dict[Trial, Moments]
  ) -> int:
    """One micro-batch through all variants; returns block evaluations."""
    depth = self._model.depth
    variants = list(states)
    last = self._last_mixing_block(variants)
    evaluated = 0
    x, narrow = blocks.embed(
      self._stem, self._outer, batch['image'], self._place
    )
    streams: dict[Trial, tuple[Array, Array]] = {(): (x, narrow)}
    del x
    for index in range(depth):
      # Prefixes of the variants up to this block, under their parent.
      children: dict[Trial, list[Trial]] = {}
      for variant in variants:
        prefix = tuple(i for i in variant if i <= index)
        parent = tuple(i for i in prefix if i < index)
        if prefix not in children.setdefault(parent, []):
          children[parent].append(prefix)
      grown = {}
      for parent, prefixes in children.items():
        pair = streams.pop(parent)
        for prefix in prefixes:
          evaluated += 1
          if index < last:
            grown[prefix] = (self._block(index, prefix, pair[0]), narrow)
            continue
          state = states.get(prefix) if index == depth - 1 else None
          grown[prefix], state = self._end(
            index, prefix, pair, batch, state, use_stream=index == max(last, 0)
          )
          if index == depth - 1:
            states[prefix] = state
        del pair
      streams = grown
    return evaluated

  def _last_mixing_block(self, variants: Sequence[Trial]) -> int:
    """The last block that mixes tokens in any variant; -1 for none."""
    linear_inputs = self._model.module.linear_inputs
    mixing = [
      index
      for index in range(self._model.depth)
      if any(
        mixes_tokens(self._mode(index, variant), linear_inputs)
        for variant in variants
      )
    ]
    return mixing[-1] if mixing else -1

  def _mode(self, index: int, prefix: Trial) -> AttentionMode:
    if index not in prefix:
      return self._model.attention_modes[index]
    return 'linear' if index in self._maps else 'absent'

  def _attention_params(self, index: int, prefix: Trial) -> Params:
    """Parameters of a block with attention, or with what stands in for it."""
    if self._mode(index, prefix) not in ('full', 'linear'):
      # A block without attention parameters borrows those of one that has
      # them: they are not used, and all calls share one program.
      index = self._model.attention_modes.index('full')
    elif index in prefix:
      return self._maps[index]
    return pieces.block_params(self._params, index)

  def _block(self, index: int, prefix: Trial, x: Array) -> Array:
    """A block on all tokens."""
    mode = self._mode(index, prefix)
    if mode in ('full', 'linear'):
      return blocks.attend(
        pieces.block_of(self._model.module, index, mode),
        self._attention_params(index, prefix),
        x,
        self._place,
      )
    return blocks.pass_by(
      pieces.block_of(self._model.module, index, 'absent'),
      pieces.mlp_params(self._params, index),
      x,
      _residual_scale(mode),
      self._place,
    )

  def _end(
    self,
    index: int,
    prefix: Trial,
    streams: tuple[Array, Array],
    batch: Mapping[str, Array],
    state: Moments | None,
    use_stream: bool,
  ) -> tuple[tuple[Array, Array], Moments]:
    """A block on the read tokens; see `programs.finish`."""
    module = self._model.module
    mode = self._mode(index, prefix)
    kind: AttentionMode = 'linear' if mode == 'linear' else 'full'
    is_last = index == self._model.depth - 1
    if state is None:
      state = self._place.replicate(
        moments.empty(self._channels, (self._shards,))
      )
    narrow, state = trial_readout.finish(
      trial_readout.End(
        pieces.block_of(module, index, kind),
        pieces.block_of(module, index, 'absent'),
        self._stem,
        self._target,
        self._place,
      ),
      self._attention_params(index, prefix),
      pieces.mlp_params(self._params, index),
      self._outer,
      streams,
      {'label': batch['label'], 'mask': batch['mask']},
      state,
      residual_scale=_residual_scale(mode),
      use_attention=np.bool_(mode == 'full'),
      use_stream=np.bool_(use_stream),
      is_last=np.bool_(is_last),
    )
    return (streams[0], narrow), state

  def _raise_not_finite(self, variant: Trial) -> None:
    """Finds the first block whose output is not finite, and names it."""
    module = self._model.module
    modes = tuple(self._mode(index, variant) for index in range(module.depth))
    module = module.clone(attention_modes=modes)
    params = self._params | {
      block_name(index): fitted
      for index, fitted in self._maps.items()
      if index in variant
    }
    how = 'replaced' if self._maps else 'left out'
    context = f' with the attention of {list(variant)} {how}' * bool(variant)
    for batch in self._set.micro_batches(self.micro_batch):
      _, taps = forward(module, params, batch['image'], capture=True)
      streams = {
        'the embedding': taps['embedding'],
        **{
          f'block {index}': taps[block_name(index)]['output']
          for index in range(module.depth)
        },
      }
      for name, stream in streams.items():
        if not bool(jnp.isfinite(stream).all()):
          raise not_finite(name, context)
    raise ModelError(
      f'the {self._target} are NaN or infinite{context}; check the head'
    )


def _residual_scale(mode: AttentionMode) -> np.float32:
  return np.float32(2.0 if mode == 'identity' else 1.0)


def _largest_divisor(number: int, limit: int) -> int:
  return max(n for n in range(1, limit + 1) if number % n == 0)
