"""`Compression`: the record of a path, as JSON, table and picture."""

import dataclasses
import json
import math

import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.compression.record import (
  BlockLeft,
  Compression,
  Point,
  Step,
)
from lambda_vit_jax.core.errors import CheckpointError, UsageError

OPTIONS = {
  'criterion': 'output',
  'target': 'logits',
  'cost': 'macs',
  'parts': ('attention', 'neurons', 'blocks'),
}


def step(part, block, macs, error, attention=None, neurons=None):
  return Step(
    macs,
    10 * macs,
    error,
    part=part,
    block=block,
    attention=attention,
    neurons=neurons,
    scores=((block, part, error),),
    seconds=0.25,
  )


@pytest.fixture
def record():
  return Compression(
    OPTIONS,
    1.5,
    64,
    Point(1200, 9000, 0.0),
    Point(1200, 9000, 0.0),
    tuple(BlockLeft(block, 'full', 64) for block in range(3)),
    (
      step('attention', 0, 1000, 0.2, 'linear', 64),
      step('neurons', 1, 900, 0.1, 'full', 56),
      step('block', 2, 600, 0.4),
    ),
    ((1, 'neurons', 0.3),),
    evaluations=2.5,
  )


def test_json_round_trip(record):
  text = json.dumps(record.to_json())
  assert Compression.from_json(json.loads(text)) == record


def test_what_is_left_of_each_block(record):
  assert record.left() == (
    BlockLeft(0, 'linear', 64),
    BlockLeft(1, 'full', 56),
    BlockLeft(2, None, None),
  )
  assert record.left(1)[1:] == record.blocks[1:]


def test_the_frontier_leaves_out_what_a_faster_network_beats(record):
  # The second step is faster and better than the first.
  assert record.frontier() == (
    (1.0, 0.0),
    (1200 / 900, 0.1),
    (2.0, 0.4),
  )


def test_a_record_without_models_says_so(record):
  with pytest.raises(UsageError, match='holds no models'):
    _ = record.model
  kept = dataclasses.replace(record, models=('a', 'b', 'c', 'd'))
  assert kept.model == 'd'
  assert kept.at(1.0) == 'a'
  assert kept.at(1.25) == 'c'
  with pytest.raises(UsageError, match=r'ends at 2\.000'):
    kept.at(2.5)
  with pytest.raises(UsageError, match=r"at\(speedup='1.25'\): must be"):
    kept.at('1.25')
  with pytest.raises(UsageError, match=r'speedup=nan.*finite'):
    kept.at(math.nan)


def test_measured_times_decide_where_there_are_any(record):
  timed = dataclasses.replace(
    record,
    dense=dataclasses.replace(record.dense, ms=3.0),
    steps=(dataclasses.replace(record.steps[0], ms=2.0),),
  )
  assert timed.reached == 1.5


def test_shown_as_a_table(record):
  text = repr(record)
  assert '2.000 times as fast' in text
  assert len(text.splitlines()) == 6


def test_plot_draws_the_curve_and_the_strip(record):
  figure = record.plot()
  curve, strip = figure.axes
  assert curve.lines[0].get_xydata().tolist() == [
    [1.0, 0.0],
    [1.2, 0.2],
    [1200 / 900, 0.1],
    [2.0, 0.4],
  ]
  heights = [patch.get_height() for patch in strip.patches]
  assert heights == [1, 56 / 64, 0, 0, -1, 0, -0.25, 0, 0]
  assert record.plot(curve) is figure
  odd = dataclasses.replace(record, options=OPTIONS | {'criterion': '\x1b$'})
  assert odd.plot().axes[0].get_ylabel() == r'\x1b\$'


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'steps': 3}, '`steps` is 3'),
    ({'blocks': []}, '`blocks`'),
    (
      {'blocks': [{'block': 7, 'attention': None, 'neurons': None}]},
      'about block 0, which the network does not have',
    ),
    ({'target_speedup': 0.5}, '`target_speedup`'),
    ({'evaluations': -0.5}, '`evaluations`'),
    ({'timings': {'stem': 0}}, '`timings'),
    ({'pending': [{'block': 0, 'part': 'head', 'increase': 1}]}, 'part'),
  ],
)
def test_another_content_is_refused(record, change, says):
  with pytest.raises(CheckpointError, match=says):
    Compression.from_json(record.to_json() | change)


def test_public_names():
  assert lv.Compression is Compression
