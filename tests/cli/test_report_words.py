"""What the report page says was done, in words and block by block."""

import json
import re
import shlex

import pytest

from lambda_vit_jax.cli import flags
from lambda_vit_jax.cli.report import (
  done,
  lead,
  network,
)
from lambda_vit_jax.cli.report.results import read_results
from tests.support.report_files import COMPRESSION, FILES, write_files, written


@pytest.fixture
def results_of(tmp_path):
  """Results of `FILES` with some values changed."""

  def make(**changes):
    write_files(tmp_path, **changes)
    return read_results(tmp_path)

  return make


# What was done.


@pytest.mark.parametrize(
  'changes',
  [
    ['--config=digits'],
    ['--config=digits', '--config.seed=7', '--config.data.source=my images'],
    ['--config=digits', '--config.select.target_speedup=1.5'],
    ['--config=imagenet_deit_tiny', '--config.model.merge=(2, 0, 1)'],
    ['--config=fashion_mnist', '--config.compress.parts=("neurons",)'],
  ],
  ids=' '.join,
)
def test_the_command_makes_the_same_config_again(changes):
  """Whatever file it came from, and with texts that a shell would split."""
  config = flags.parse(['run', *changes, '--workdir=x'])[1].to_dict()
  stored = json.loads(json.dumps(config))
  program, *words = shlex.split(done.command(stored))
  assert program == 'lambda-vit'
  stage, again, _ = flags.parse(words)
  assert stage == 'run'
  assert json.loads(json.dumps(again.to_dict())) == stored


def test_a_long_command_is_not_cut(tmp_path, undrawn):
  """Other texts of the page are, after a thousand characters."""
  source = '/'.join(['a folder'] * 200)
  write_files(tmp_path, config={'data': {'source': source}})
  page = re.sub('</?span>', '', written(tmp_path))
  assert f'--config.data.source={source}' in page


def test_a_default_run_has_a_short_command():
  """Not every value as a flag."""
  config = flags.parse(['run', '--config=digits', '--workdir=x'])[1].to_dict()
  assert done.command(config) == (
    'lambda-vit run --config=digits --workdir=runs/again'
  )


def test_what_was_done_is_said_first(tmp_path, undrawn):
  write_files(tmp_path)
  page = written(tmp_path)
  start, end = page.index('<h2>What was done'), page.index('<h2>Results')
  said = page[start:end]
  for words in (
    '50,000 test images',
    '<dt>Seed</dt><dd>3</dd>',
    '1 h 1 min (select 1 min 15 s, dilute 1 h 0 min), 2026-01-01',
    'lambda_vit_jax 0.2.0 jax 0.10.2',
    '<span>lambda-vit</span> <span>run</span> <span>--config=',
  ):
    assert words in said, words
  assert start < page.index('class="lead"')


@pytest.mark.parametrize(
  'seconds, text',
  [
    (4.06, '4.1 s'),
    (59.99, '1 min 0 s'),
    (75.2, '1 min 15 s'),
    (3599.9, '1 h 0 min'),
    (7500, '2 h 5 min'),
  ],
)
def test_a_duration_has_two_units_at_most(seconds, text):
  assert done.duration(seconds) == text


# In words.


def sentence(results, name):
  return next(row for row in lead.sentences(results) if row[0] == name)


@pytest.mark.parametrize(
  'pair, words',
  [
    ([-0.012, 0.004], '1.20 points lost ± 0.40'),
    ([0.012, 0.004], '1.20 points gained ± 0.40'),
    ([-0.003, 0.004], '0.30 points lost ± 0.40, not told apart'),
    ([0.0, 0.004], '0.00 points gained ± 0.40, not told apart'),
    ([0.0, 0.0], 'No difference'),
    (None, '0.40 points gained'),
  ],
)
def test_accuracy_has_its_paired_interval(results_of, pair, words):
  """A difference within its own interval is not sold as one."""
  row = dict(FILES['evaluation.json']['pruned'])
  row.pop('difference')
  if pair is not None:
    row['difference'] = {'dense': pair}
  _, said, detail = sentence(results_of(evaluation={'pruned': row}), 'Accuracy')
  assert said == words
  assert ('interval not known' in detail) == (pair is None)


@pytest.mark.parametrize(
  'pair, words, more',
  [
    ([-0.01, 0.004], '1.00 points lost ± 0.40', 'mean IoU 80.00 % → 79.00 %'),
    # Of two images, on which the models are oppositely right.
    ([-0.01, 1.4], '1.00 points lost ± 140.00, not told apart', 'mean IoU'),
    ([0.0, 0.0], 'No difference', 'right on the same pixels'),
  ],
)
def test_iou_has_its_paired_interval(results_of, pair, words, more):
  rows = {name: {'mean_iou': 0.8} for name in ('dense', 'baseline')}
  rows['pruned'] = {'mean_iou': 0.79, 'difference': {'baseline': pair}}
  rows['exported'] = {'mean_iou': 0.79}
  _, said, detail = sentence(results_of(evaluation=rows), 'Accuracy')
  assert said == words
  assert more in detail


def test_accuracy_is_against_the_dense_model_with_the_same_steps(results_of):
  """Its interval too, not that of the model that was trained less."""
  rows = {k: v | {'steps': 9} for k, v in FILES['evaluation.json'].items()}
  rows['dense']['steps'] = 0
  rows['baseline'] = rows['dense'] | {'top1': 0.801, 'steps': 9}
  _, said, detail = sentence(results_of(evaluation=rows), 'Accuracy')
  assert said == '0.20 points gained ± 0.30, not told apart'
  assert 'with the same steps: top-1 80.10 % → 80.30 %' in detail


def test_operations_are_those_that_are_executed(results_of):
  """4.0 G to 3.24 G of them; the published count says 1.11 times fewer."""
  said = sentence(results_of(), 'Operations')
  assert said[1:] == (
    '1.23 times fewer operations',
    '4.00 G → 3.24 G MACs executed per image',
  )


@pytest.mark.parametrize(
  'interval, words',
  [
    ([1.2, 1.3], '1.25 times the images per second'),
    ([0.97, 1.6], 'Not told apart from the dense model'),
    ([1.0, 1.6], 'Not told apart from the dense model'),
  ],
)
def test_speed_has_its_interval(results_of, interval, words):
  results = results_of(benchmark={'speedup_interval': interval})
  _, said, detail = sentence(results, 'Speed')
  assert said == words
  assert f'interval {interval[0]:.2f} to {interval[1]:.2f} times' in detail
  assert 'batch 64' in detail


# The network.


def measured(dense, pruned):
  """A benchmark with the blocks of two networks, as tuples."""
  names = ('block', 'attention', 'neurons', 'tokens', 'merged', 'macs')
  rows = (
    [dict(zip(names, row, strict=True)) for row in net]
    for net in (dense, pruned)
  )
  base = FILES['benchmark.json']
  return {
    name: base[name] | {'blocks': blocks}
    for name, blocks in zip(('dense', 'pruned'), rows, strict=True)
  }


def test_the_strip_shows_whatever_has_gone(results_of):
  """Attention, maps, neurons, blocks and tokens, each with its MACs."""
  dense = [(k, 'full', 64, 17, 0, 9000) for k in range(4)]
  dense.append((4, 'absent', 64, 17, 0, 5000))
  pruned = [
    (0, 'full', 48, 17, 4, 8000),
    (1, 'linear', 64, 13, 0, 6000),
    (3, 'identity', 64, 13, 0, 4000),
    (4, 'absent', 64, 13, 0, 5000),
  ]
  results = results_of(
    benchmark=measured(dense, pruned), selection={'removed_before': [4]}
  )
  blocks = network.blocks_of(results)
  states = [block.state for block in blocks]
  assert states == ['kept', 'map', 'dropped', 'removed', 'before']
  assert network.removed_in_words(blocks) == [
    '3 of 4 attention layers removed',
    '1 affine map in their place',
    '1 whole block dropped',
    '75 % of the MLP neurons left',
    '4 of 17 tokens merged',
  ]
  items = re.findall('<li.*?</li>', network.strip(blocks, 'nats'))
  assert len(items) == 5
  for words in (
    'MLP, 48 of 64 neurons',
    '4 of 17 tokens merged',
    '9 k → 8 k MACs',
    'style="width:75%"',
  ):
    assert words in items[0], words
  assert 'affine map for attention' in items[1]
  assert 'block dropped' in items[2]
  assert '9 k → 0 MACs' in items[2]
  assert [item.startswith('<li class="gone">') for item in items] == [
    False,
    True,
    True,
    True,
    True,
  ]


def test_a_search_over_all_parts_is_in_the_strip_before_its_benchmark(tmp_path):
  """With its errors as scores; its selection, of an earlier method, is not."""
  write_files(tmp_path, config={'method': 'compress'})
  (tmp_path / 'benchmark.json').unlink()
  (tmp_path / 'compression.json').write_text(json.dumps(COMPRESSION))
  results = read_results(tmp_path)
  blocks = network.blocks_of(results)
  assert [block.state for block in blocks] == ['kept', 'map', 'dropped']
  assert [block.neurons for block in blocks] == [(64, 48), (64, 64), (64, 0)]
  assert [block.score for block in blocks] == [0.01, 0.02, 0.04]
  assert results.without_attention == [1, 2]


def test_the_path_of_a_search_has_its_target_and_units(tmp_path, undrawn):
  write_files(tmp_path, config={'method': 'compress'})
  (tmp_path / 'compression.json').write_text(json.dumps(COMPRESSION))
  page = written(tmp_path)
  section = page[page.index('<h2>Compression') : page.index('<h2>What changed')]
  for words in ('1.600</td>', 'error (nats)', 'dashed: the speed-up asked for'):
    assert words in section, words


def test_scores_in_the_strip_are_those_of_the_last_try(results_of):
  """A block that was chosen has the score of its own round."""
  assert network.block_scores(results_of()) == {0: 0.5, 1: -0.2, 2: 0.05}
