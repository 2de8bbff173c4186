"""Exact inference shortcuts: a last block on the class token only, no factor 2.

They return the same logits by fewer operations (`ViT.__call__` with
`capture=False`):

- From the last block that mixes tokens on, only the tokens that the readout
  reads are computed: for most models the class token.
- The factor 2 of identity blocks is left out. The stream is then 2^-k of what
  it would be, which norms and branches make up for, as in folding.
"""

import dataclasses
import functools

import jax

from lambda_vit_jax.core.typing import Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['sizes'],
  meta_fields=['read_tokens', 'halvings'],
)
@dataclasses.dataclass(frozen=True)
class StreamInfo:
  """What a block has to know of the stream beside its values.

  Attributes:
    sizes: number of patches in each token, `[batch, tokens]`; None for one
      each (no token has been merged).
    read_tokens: if set, only this many leading tokens are computed; keys and
      values still come from all. Static.
    halvings: k where the stream is 2^-k of its full scale because the factors
      of identity blocks, this one included, are left out; None to compute
      them. Static.
  """

  sizes: Array | None = None
  read_tokens: int | None = None
  halvings: int | None = None

  @property
  def norm_halvings(self) -> int:
    """The number k, 0 for None."""
    return self.halvings or 0

  @property
  def branch_scale(self) -> float:
    """2^-k, by which everything that is added to the stream is multiplied."""
    return 0.5**self.norm_halvings

  def read(self, x: Array) -> Array:
    """The tokens of `x` that are computed."""
    return x if self.read_tokens is None else x[:, : self.read_tokens]


PLAIN = StreamInfo()
"""One patch in each token, and no shortcut."""
