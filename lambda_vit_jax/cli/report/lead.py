"""Accuracy, speed and size of a run in words, to be read at one look."""

from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.cli.report import network, speed_table, tables
from lambda_vit_jax.cli.report.results import Results
from lambda_vit_jax.cli.report.speed_table import si

Sentence = tuple[str, str]
"""What to read first, and how it was found."""

_NOTHING = ('', '')


def sentences(results: Results) -> list[tuple[str, str, str]]:
  """What is gone, what that costs, and what it gains.

  Returns:
    Of each: its name, the words to read first, and how they were found.
  """
  measured = results.benchmark
  removed, *more = network.removed_in_words(network.blocks_of(results))
  rows = [
    ('Removed', (removed, ', '.join(more))),
    ('Accuracy', _accuracy(results)),
  ]
  if measured:
    dense, pruned = measured['dense'], measured['pruned']
    rows += [
      ('Operations', _operations(dense, pruned)),
      ('Speed', _speed(measured)),
      ('Size', _size(dense, pruned)),
    ]
  return [(name, *words) for name, words in rows if words[0]]


def _accuracy(results: Results) -> Sentence:
  """The change to the dense model, trained for the same steps where there is one."""
  rows, key = results.evaluation, results.score
  against = 'baseline' if 'baseline' in rows else 'dense'
  before, after = (rows.get(name, {}).get(key) for name in (against, 'pruned'))
  if before is None or after is None:
    return _NOTHING
  model = 'the dense model'
  steps = [rows[name].get('steps') for name in (against, 'pruned')]
  if steps[0] is not None and steps[0] == steps[1]:
    model += ' with the same steps'
  score = tables.head(results).replace(' %', '')
  detail = (
    f'against {model}: {score} {100 * before:.2f} % → {100 * after:.2f} %'
  )
  number = rows['pruned'].get('num_images')
  if number:
    detail += f' of {number:,} test images'
  pair = rows['pruned'].get('difference', {}).get(against)
  change = after - before if pair is None else pair[0]
  way = 'lost' if change < 0 else 'gained'
  points = f'{abs(100 * change):.2f} points {way}'
  if pair is None:
    return points, f'{detail}; interval not known'
  if not any(pair):
    where = 'ones' if key == 'top1' else 'pixels'
    return 'No difference', f'{detail}; the two are right on the same {where}'
  words = f'{points} ± {100 * pair[1]:.2f}'
  if abs(change) <= pair[1]:
    words += ', not told apart'
  return words, f'{detail}; ± is the 95% interval of paired differences'


def _operations(
  dense: Mapping[str, Any], pruned: Mapping[str, Any]
) -> Sentence:
  """Of what runs, which is what the speed can follow."""
  key, what = 'macs_executed', 'MACs executed per image'
  if not (key in dense and key in pruned):
    key, what = 'macs', 'MACs per image, as published'
  before, after = dense.get(key), pruned.get(key)
  if not before or not after:
    return _NOTHING
  words = f'{before / after:.2f} times fewer operations'
  if after > before:
    words = f'{after / before:.2f} times more operations'
  return words, f'{si(before)} → {si(after)} {what}'


def _speed(measured: Mapping[str, Any]) -> Sentence:
  """Images per second against the dense model, with its interval."""
  words = f'{measured["speedup"]:.2f} times the images per second'
  where = f'batch {measured["batch_size"]}, {measured["device"]}'
  if 'speedup_interval' not in measured:
    return words, f'{where}; interval not known'
  low, high = (f'{end:.2f}' for end in measured['speedup_interval'])
  detail = f'95% interval {low} to {high} times; {where}'
  if not speed_table.told_apart(measured):
    words = 'Not told apart from the dense model'
  return words, detail


def _size(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Sentence:
  before, after = dense.get('parameters'), pruned.get('parameters')
  if not before or not after:
    return _NOTHING
  change = 100 * (1 - after / before)
  words = f'{abs(change):.1f} % {"fewer" if change >= 0 else "more"} parameters'
  detail = f'{si(before)} → {si(after)}'
  held = [
    row['weight_bytes'] for row in (dense, pruned) if 'weight_bytes' in row
  ]
  if len(held) == 2:
    detail += f'; weights {" → ".join(si(number, "B") for number in held)}'
  return words, detail
