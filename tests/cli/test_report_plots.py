"""How the report page draws scores, layers and training."""

import json
import re

import matplotlib.figure
import pytest

from lambda_vit_jax.cli.report import (
  drawing,
  plots,
)
from tests.support.report_files import write_files, write_metrics, written


@pytest.fixture
def axes_of(monkeypatch):
  """What a plot has drawn, as matplotlib's own axes."""

  def make(plot, *arguments):
    found = []

    def draw(paint, x, y, panels=1, height=1.0):
      figure = matplotlib.figure.Figure()
      every = [figure.add_subplot(panels, 1, k + 1) for k in range(panels)]
      paint(every if panels > 1 else every[0])
      found.extend(figure.axes)
      return ''

    monkeypatch.setattr(plots, 'draw', draw)
    plot(*arguments)
    return found

  return make


# Scores.


ROUNDS = [
  {
    'scores': {'0': 9.0, '1': 0.02, '2': -0.01, '3': 0.01},
    'intervals': {
      '0': [8.0, 10.0],
      '1': [0.01, 0.03],
      '2': [-0.03, 0.01],
      '3': [-0.02, 0.04],
    },
    'chosen': 2,
    'indistinguishable': [3],
  },
  {
    'scores': {'0': 9.5, '1': 0.03, '3': 0.02},
    'intervals': {'0': [8.5, 10.5], '1': [0.02, 0.04], '3': [0.01, 0.03]},
    'chosen': 3,
    'indistinguishable': [],
  },
]


def test_one_block_does_not_set_the_scale_of_all_scores(axes_of):
  """The chosen ones fill the axis; block 0 is at its edge, with its value."""
  panels = axes_of(plots.scores_of_rounds, ROUNDS, 'nats')
  assert len(panels) == 2
  for axes in panels:
    low, high = axes.get_ylim()
    assert low < -0.03
    assert 0.04 < high < 0.1
  (text,) = panels[0].texts
  assert text.get_text() == '9'
  edge = [line for line in panels[0].lines if line.get_marker() == '^']
  assert [line.get_xdata()[0] for line in edge] == [0]


def test_intervals_choice_and_as_good_as_are_drawn(axes_of):
  axes = axes_of(plots.scores_of_rounds, ROUNDS, 'nats')[0]
  marks = {
    line.get_xdata()[0]: line.get_marker()
    for line in axes.lines
    if line.get_marker() in ('o', 'D')
  }
  assert marks == {1: 'o', 2: 'o', 3: 'D'}
  (chosen,) = (x for x in axes.lines if x.get_markersize() == 8)
  assert chosen.get_xdata()[0] == 2
  bars = {
    tuple(line.get_xdata()): list(line.get_ydata())
    for line in axes.lines
    if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]
  }
  assert bars == {(k, k): ROUNDS[0]['intervals'][str(k)] for k in (1, 2, 3)}


@pytest.mark.parametrize('scores', [{'0': 1.0, '1': 0.0}, {'0': 0.0}])
def test_scores_without_intervals_are_all_shown(axes_of, scores):
  """Criteria that nothing is resampled for have no window to look through."""
  rounds = [{'scores': scores, 'chosen': 0}]
  (axes,) = axes_of(plots.scores_of_rounds, rounds, '')
  low, high = axes.get_ylim()
  assert low < min(scores.values()) <= max(scores.values()) < high
  assert not axes.texts


def test_the_score_over_the_layers_removed_begins_with_the_dense_model(axes_of):
  (axes,) = axes_of(plots.score_over_removed, ROUNDS, 'nats')
  line = axes.lines[0]
  assert list(line.get_xdata()) == [0, 1, 2]
  assert list(line.get_ydata()) == [0.0, -0.01, 0.02]


def test_accuracy_over_the_layers_removed_is_drawn_where_it_is_known(
  tmp_path, axes_of, undrawn
):
  (axes,) = axes_of(plots.top1_over_removed, [90.0, 88.0, 89.0])
  assert list(axes.lines[0].get_ydata()) == [90.0, 88.0, 89.0]
  low, high = axes.get_ylim()
  assert high - low >= 10
  write_files(tmp_path)
  path = tmp_path / 'selection.json'
  known = json.loads(path.read_text()) | {
    'criterion': 'transfer_entropy',
    'top1': [0.9, 0.88, 0.89],
  }
  path.write_text(json.dumps(known))
  page = written(tmp_path)
  assert 'Top-1 of 2048 held-out images over the number' in page
  assert 'Score of the network' not in page
  for cells in ('0 – 90.00', '1 1 88.00', '2 2 89.00'):
    row = ''.join(f'<td>{cell}</td>' for cell in cells.split())
    assert row in page


# Layers.


def test_removed_blocks_are_marked_in_the_plots_of_layers(axes_of):
  (axes,) = axes_of(plots.layer_entropy, [1.0, 2.0, 3.0], [1.0] * 3, [0, 2])
  spans = [patch.get_extents() for patch in axes.patches]
  centres = [
    axes.transData.inverted().transform((box.x0 + box.width / 2, 0))[0]
    for box in spans
  ]
  assert centres == pytest.approx([0, 2])
  labels = [text.get_text() for text in axes.get_legend().get_texts()]
  assert labels == ['attention', 'MLP', 'attention removed']


def test_cosine_and_spectrum_are_shown(tmp_path, undrawn):
  write_files(tmp_path)
  page = written(tmp_path)
  captions = re.findall('<figcaption>(.*?)</figcaption>', page)
  assert any(caption.startswith('Cosine') for caption in captions)
  assert any('spatial frequencies' in caption for caption in captions)


@pytest.mark.parametrize(
  'spectrum', [{}, {'frequencies': [0.0], 'relative_log_amplitude': [[0, 1]]}]
)
def test_a_spectrum_that_does_not_fit_is_left_out(tmp_path, undrawn, spectrum):
  write_files(tmp_path, analysis={'spectrum': spectrum})
  assert 'spatial frequencies' not in written(tmp_path)


# Training.


@pytest.mark.parametrize(
  'values, least, ends',
  [
    ([0.5, 0.506], 0.2, (0.403, 0.603)),
    ([0.0, 2.0], 0.2, (0.0, 2.1)),
    ([0.05], 0.2, (0.0, 0.2)),
    ([], 0.2, (0.0, 0.2)),
  ],
)
def test_an_axis_has_a_least_length(values, least, ends):
  """A difference of 0.006 does not fill the plot."""
  assert drawing.limits(values, least, 0.0) == pytest.approx(ends)


def test_an_axis_of_accuracy_ends_at_100():
  low, high = drawing.limits([99.4, 100.0], 10.0, 0.0, 100.0)
  assert low == 90.0
  assert 100.0 < high < 101.0


def rows_of_training(loss, accuracy):
  rows = [
    {'step': step, 'loss': loss, 'accuracy': accuracy, 'lambda': 1.0}
    for step in (50, 100)
  ]
  rows[1] |= {'holdout_loss': loss + 0.006, 'holdout_accuracy': accuracy}
  return rows


@pytest.mark.parametrize('key', ['loss', 'accuracy'])
def test_curves_begin_at_step_0_and_have_held_out_images(axes_of, key):
  rows = rows_of_training(0.5, 0.9)
  ends = plots.training_limits(rows, key)
  axes = axes_of(plots.training_curves, rows, key, ends)[0]
  assert axes.get_xlim()[0] == 0
  assert axes.get_ylim() == pytest.approx(ends)
  held = axes.lines[1]
  assert list(held.get_xdata()) == [100]
  scale, more = (100.0, 0.0) if key == 'accuracy' else (1.0, 0.006)
  wanted = scale * (rows[0][key] + more)
  assert list(held.get_ydata()) == pytest.approx([wanted])


def test_pruned_and_baseline_share_their_axes(tmp_path, monkeypatch):
  """Side by side, a better curve is the higher one."""
  seen = []
  monkeypatch.setattr(
    plots,
    'training_curves',
    lambda rows, key, ends: seen.append((rows[0]['stage'], key, ends)) or '',
  )
  write_files(tmp_path)
  write_metrics(tmp_path, ('pretrain', 'dilute', 'baseline'), last=60)
  written(tmp_path)
  by_key = {
    key: {stage: ends for stage, k, ends in seen if k == key}
    for key in ('loss', 'accuracy')
  }
  for ends in by_key.values():
    assert ends['dilute'] == ends['baseline']
