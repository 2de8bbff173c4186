"""The network as a strip of blocks: what is left of each, its score and cost."""

import dataclasses

from lambda_vit_jax.cli.report.html import escape
from lambda_vit_jax.cli.report.results import Results

# What has become of a block's attention.
_STATES = {
  'kept': 'attention',
  'map': 'affine map for attention',
  'removed': 'attention removed',
  'before': 'attention gone before',
  'dropped': 'block dropped',
}


@dataclasses.dataclass(frozen=True)
class Block:
  """A block of the dense network, and what is left of it.

  Attributes:
    index: as the dense network counts.
    state: a key of `_STATES`.
    neurons: hidden widths of its MLP, dense and pruned, where known.
    merged: tokens that it merges away in the pruned network.
    tokens: that the pruned network gives it, 0 where not known.
    macs: executed for one image, dense and pruned, where known.
    score: of its removal, or of the last one that was tried.
  """

  index: int
  state: str
  neurons: tuple[int, int] | None = None
  merged: int = 0
  tokens: int = 0
  macs: tuple[int, int] | None = None
  score: float | None = None

  @property
  def had_attention(self) -> bool:
    """Whether it had attention when the search began."""
    return self.state != 'before'

  @property
  def gone(self) -> bool:
    """Whether its attention is gone, by this run or before."""
    return self.state != 'kept'


def blocks_of(results: Results) -> list[Block]:
  """Each block of the dense network.

  The benchmark has counted both networks. Where it has not run, or an earlier
  version has, the selection or the search says what is gone, not what it costs.
  """
  dense, pruned = (
    {
      row['block']: row
      for row in results.benchmark.get(name, {}).get('blocks', ())
    }
    for name in ('dense', 'pruned')
  )
  scores = block_scores(results)
  if not dense:
    return _without_benchmark(results, scores)
  nothing = {'attention': '', 'neurons': 0, 'macs': 0, 'merged': 0, 'tokens': 0}
  found = []
  for index, before in dense.items():
    after = pruned.get(index, nothing)
    found.append(
      Block(
        index,
        _state(before['attention'], after['attention']),
        (before['neurons'], after['neurons']),
        after['merged'],
        after['tokens'],
        (before['macs'], after['macs']),
        scores.get(index),
      )
    )
  return found


def _state(before: str, after: str) -> str:
  if not after:
    return 'dropped'
  if before != 'full':
    return 'before'
  return {'full': 'kept', 'linear': 'map'}.get(after, 'removed')


def _without_benchmark(
  results: Results, scores: dict[int, float]
) -> list[Block]:
  known = [*scores, *results.gone, *results.dropped]
  entropy = results.analysis.get('profile', {}).get('attention_entropy', ())
  states = dict.fromkeys(results.gone_before, 'before')
  removed = results.selection.get('removed', ())
  states |= dict.fromkeys(removed, 'map' if results.fits_maps else 'removed')
  states |= dict.fromkeys(results.dropped, 'dropped')
  widths: dict[int, tuple[int, int]] = {}
  merged: dict[int, int] = {}
  if results.compression is not None and results.compresses:
    whole = {row.block: row for row in results.compression.blocks}
    for row in results.compression.left():
      known.append(row.block)
      full = whole[row.block].neurons or 0
      widths[row.block] = (full, row.neurons or 0)
      merged[row.block] = row.merged
      states[row.block] = _state('full', row.attention or '')
  depth = max(len(entropy), max(known, default=-1) + 1)
  return [
    Block(
      k,
      states.get(k, 'kept'),
      widths.get(k),
      merged.get(k, 0),
      score=scores.get(k),
    )
    for k in range(depth)
  ]


def block_scores(results: Results) -> dict[int, float]:
  """Of each block: its score in the last round that tried it.

  For a block that went, that is the round that chose it.
  """
  found = {
    int(block): score
    for row in results.selection.get('rounds', ())
    for block, score in row['scores'].items()
  }
  if results.compression is not None and results.compresses:
    found = {step.block: step.error for step in results.compression.steps}
  return found


def removed_in_words(blocks: list[Block]) -> list[str]:
  """`5 of 12 attention layers removed`, and whatever else has gone."""
  had = [block for block in blocks if block.had_attention]
  gone = [block for block in had if block.gone]
  parts = [f'{len(gone)} of {len(had)} attention layers removed' if had else '']
  for state, words in (
    ('map', '{} affine map{} in their place'),
    ('dropped', '{} whole block{} dropped'),
  ):
    number = sum(block.state == state for block in blocks)
    if number:
      parts.append(words.format(number, 's' if number > 1 else ''))
  widths = [block.neurons for block in blocks if block.neurons]
  whole, left = (sum(pair[k] for pair in widths) for k in (0, 1))
  if left < whole:
    parts.append(f'{100 * left / whole:.0f} % of the MLP neurons left')
  merged = sum(block.merged for block in blocks)
  if merged:
    parts.append(_merged(merged, max(block.tokens for block in blocks)))
  return parts


def strip(blocks: list[Block], unit: str) -> str:
  """The row of blocks as a list.

  Args:
    blocks: of the dense network.
    unit: of the scores, or ''.
  """
  items = ''.join(_item(block, unit) for block in blocks)
  return f'<ol class="network" start="0">{items}</ol>'


def _item(block: Block, unit: str) -> str:
  kept = float(block.state in ('kept', 'map'))
  lines = [
    _bar(kept, 'map' if block.state == 'map' else ''),
    _line(_STATES[block.state]),
  ]
  if block.neurons and block.state != 'dropped':
    whole, left = block.neurons
    lines.append(_bar(min(left / max(whole, 1), 1.0)))
    lines.append(_line(f'MLP, {_of(left, whole)} neurons'))
  if block.merged:
    lines.append(_line(_merged(block.merged, block.tokens)))
  if block.score is not None:
    lines.append(_line(f'score {block.score:.2g} {unit}'.strip()))
  if block.macs:
    lines.append(_line(_macs(*block.macs)))
  struck = ' class="gone"' if block.gone else ''
  return f'<li{struck}><b>Block {block.index}</b>{"".join(lines)}</li>'


def _line(text: str) -> str:
  return f'<span>{escape(text)}</span>'


def _bar(share: float, kind: str = '') -> str:
  """A bar whose words stand below it."""
  names = ' '.join(filter(None, ('bar', kind, '' if share else 'empty')))
  width = f'{100 * share:.1f}'.removesuffix('.0')
  return (
    f'<div class="{names}" aria-hidden="true">'
    f'<i style="width:{width}%"></i></div>'
  )


def _merged(number: int, tokens: int) -> str:
  return (
    f'{number} of {tokens} tokens merged'
    if tokens
    else f'{number} tokens merged'
  )


def _of(left: int, whole: int) -> str:
  return str(whole) if left == whole else f'{left} of {whole}'


def _macs(before: int, after: int) -> str:
  if before == after:
    return f'{_short(before)} MACs'
  return f'{_short(before)} → {_short(after)} MACs'


def _short(value: int) -> str:
  """Three digits and a prefix: `498 k`."""
  for factor, prefix in ((10**9, ' G'), (10**6, ' M'), (10**3, ' k')):
    if value >= factor:
      return f'{value / factor:.3g}{prefix}'
  return str(value)
