"""The benchmark: the order of calls, its fields, and how they are shown."""

import contextlib
import types

import jax
import pytest
from lambda_vit_jax.configs import common

from lambda_vit_jax.cli import flags
from lambda_vit_jax.cli.report import build, speed_table
from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.cli.stages import benchmark as stage
from lambda_vit_jax.core import files
from lambda_vit_jax.evaluation import benchmark
from lambda_vit_jax.evaluation.timing import Limits
from lambda_vit_jax.models.build import apply_module
from lambda_vit_jax.models.edits import prune, quantize
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.runtime.progress import Reporter
from tests.support.stage_runs import arguments

OF_BATCH = {
  'temp_bytes',
  'compile_seconds',
  'images_per_second',
  'images_per_second_interval',
  'speedup',
  'speedup_interval',
  'flops_per_second',
  'fraction_of_matmul',
}


@pytest.fixture(scope='module')
def measured():
  """Two models and a program with its weights inside, at two batch sizes."""
  dense = create_model('vit_nano_patch2_8', seed=0)
  pruned = prune(dense, (1,))
  quantized = quantize(pruned)
  program = benchmark.ExportedProgram(
    lambda images: apply_module(
      quantized.module, quantized.params, images, capture=False
    )[0],
    dict.fromkeys(benchmark.OF_MODEL, 7),
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(benchmark, '_MATMUL_SIDE', 64)
    # Seconds of compilation do not matter here.
    patch.setattr(benchmark.startup, 'without_cache', contextlib.nullcontext)
    return benchmark.compare(
      {'dense': dense, 'pruned': pruned},
      {'exported': program},
      batch_size=2,
      limits=Limits(rounds=3),
      reporter=Reporter(quiet=True),
      # One size twice, and the one that is measured anyway.
      batch_sizes=(2, 1, 1),
    )


def test_every_row_has_what_is_known_of_it(measured):
  assert {
    'device',
    'dtype',
    'batch_size',
    'rounds',
    'attention_kernel',
    'date',
    'versions',
    'matmul_flops_per_second',
    'speedup',
    'speedup_interval',
  } <= set(measured)
  assert {'lambda_vit_jax', 'jax', 'jaxlib'} <= set(measured['versions'])
  for name in ('dense', 'pruned', 'exported'):
    row = measured[name]
    assert OF_BATCH | set(benchmark.OF_MODEL) <= set(row)
    rates = row['images_per_second']
    assert 0 < rates['min'] <= rates['median'] <= rates['max']
    low, high = row['images_per_second_interval']
    assert rates['min'] <= low <= rates['median'] <= high <= rates['max']
    low, high = row['speedup_interval']
    assert low <= row['speedup'] <= high
    # From the operations executed, and this run's matrix product.
    assert row['flops_per_second'] == pytest.approx(
      2 * row['macs_executed'] * rates['median']
    )
    assert row['fraction_of_matmul'] == pytest.approx(
      row['flops_per_second'] / measured['matmul_flops_per_second']
    )
  # A program's own weights are not in the compiler's sum.
  assert 'peak_bytes' in measured['pruned']
  assert 'peak_bytes' not in measured['exported']
  dense, pruned = measured['dense'], measured['pruned']
  assert dense['peak_bytes'] > pruned['peak_bytes'] > pruned['weight_bytes']
  rates = [row['images_per_second']['median'] for row in (dense, pruned)]
  assert measured['speedup'] == pytest.approx(rates[1] / rates[0])
  assert measured['speedup'] == pruned['speedup']
  assert dense['speedup_interval'] == [1.0, 1.0]
  assert measured['rounds'] == 3


def test_the_sweep_has_each_size_once_in_the_order_asked_for(measured):
  sweep = measured['sweep']
  assert [row['batch_size'] for row in sweep] == [2, 1]
  for row in sweep:
    assert {'dense', 'pruned', 'exported', 'speedup'} <= set(row)
    assert set(row['exported']) == OF_BATCH
    assert set(row['dense']) == OF_BATCH | {'peak_bytes'}
  # Measured once, shown twice.
  first = measured['dense']['images_per_second']
  assert sweep[0]['dense']['images_per_second'] == first
  # Activations grow with the batch, weights do not.
  two, one = (row['dense']['peak_bytes'] for row in sweep)
  assert one < two < 2 * one


def test_table_and_page_show_every_size(measured, tmp_path, capsys):
  rows = speed_table.cells(measured)
  assert [(row[0].text, row[1].text) for row in rows] == [
    (name, size) for size in '12' for name in ('dense', 'pruned', 'exported')
  ]
  low, high = measured['dense']['images_per_second_interval']
  batch_two = rows[3]
  assert batch_two[3].text == f'[{low:.1f}, {high:.1f}]'
  # Dense over dense is no figure, and the program's memory is not known.
  assert batch_two[4].text == rows[5][7].text == '–'
  assert rows[4][4].text.startswith(f'{measured["speedup"]:.2f} [')
  files.write_json(tmp_path / 'benchmark.json', measured)
  build.print_benchmark(tmp_path)
  shown = capsys.readouterr().out
  for text in (*speed_table.COLUMNS, measured['device'], jax.__version__):
    assert text in shown
  page = build.write_report(tmp_path).read_text()
  assert page.count('<td data-label="batch"') == 6


def test_a_file_of_an_earlier_version_is_shown_with_dashes():
  row = {'images_per_second': {'min': 1.0, 'median': 2.0, 'max': 3.0}}
  old = {'batch_size': 16, 'device': 'd', 'dtype': 'float32', 'date': 'today'}
  (cells,) = speed_table.cells(old | {'dense': row})
  assert [cell.text for cell in cells[2:6]] == ['2.0', '–', '–', '–']
  assert speed_table.conditions(old) == 'd, float32, today'


# How the report's first lines say it.
_FASTER = '1.20 times the images per second'
_ALIKE = 'Not told apart from the dense model'


@pytest.mark.parametrize(
  'interval, text, said',
  [
    ([1.08, 1.35], '1.20 [1.08, 1.35]', [_FASTER, '1.08 to 1.35 times']),
    ([0.95, 1.40], '1.20 [0.95, 1.40], not told apart', [_ALIKE]),
    ([1.0, 1.40], '1.20 [1.00, 1.40], not told apart', [_ALIKE]),
    (None, '1.20', [_FASTER, 'interval not known']),
  ],
)
def test_a_speedup_says_how_sure_it_is(interval, text, said, capsys, tmp_path):
  """On the terminal, in the table and in the report's first lines."""
  speed = {'speedup': 1.2}
  if interval:
    speed['speedup_interval'] = interval
  assert speed_table.speedup(speed) == text
  assert speed_table.over_dense('pruned', speed).text == text
  assert speed_table.over_dense('dense', speed).text == '–'
  rates = {'images_per_second': {'min': 1.0, 'median': 2.0, 'max': 3.0}}
  sizes = {'macs': 100, 'macs_executed': 80}
  files.write_json(
    tmp_path / 'benchmark.json',
    {
      'batch_size': 16,
      'device': 'd',
      'dtype': 'float32',
      'date': 'today',
      'dense': rates | sizes,
      'pruned': rates | speed | {'macs': 85, 'macs_executed': 48},
      'exported': rates,
      **speed,
    },
  )
  build.print_benchmark(tmp_path)
  shown = ' '.join(capsys.readouterr().out.split())
  assert f'at batch 16: {text} times the images per second' in shown
  page = build.write_report(tmp_path).read_text()
  for words in said:
    assert words in page
  # The headline is of what runs: 48 of 80, not 85 of 100.
  assert '1.67 times fewer operations' in page


def pretend_run(tmp_path, **settings):
  config = common.base().to_dict()
  config['benchmark'] |= settings
  return types.SimpleNamespace(
    settings=Settings.from_config(config),
    path=lambda name: tmp_path / name,
    workdir=tmp_path,
  )


@pytest.mark.parametrize(
  'settings, finished',
  [
    ({}, True),
    ({'batch_sizes': (4,)}, True),
    ({'batch_sizes': [1, 4, 64]}, False),
    ({'batch_size': 8}, False),
  ],
)
def test_a_size_that_was_not_measured_is_still_to_do(
  tmp_path, settings, finished
):
  rows = {'dense': {}, 'pruned': {}, 'exported': {}}
  found = {
    'device': 'd',
    'dtype': 'float32',
    'date': 'today',
    'batch_size': 16,
    'speedup': 1.2,
    **rows,
    'sweep': [{'batch_size': size} | rows for size in (1, 4)],
  }
  files.write_json(tmp_path / 'benchmark.json', found)
  run = pretend_run(tmp_path, **settings)
  assert stage.is_finished(run) is finished


def test_no_file_or_a_damaged_one_is_not_finished(tmp_path):
  assert not stage.is_finished(pretend_run(tmp_path))
  (tmp_path / 'benchmark.json').write_text('{"batch')
  assert not stage.is_finished(pretend_run(tmp_path))


def test_sizes_from_the_command_line(tmp_path):
  _, config, _ = flags.parse(
    arguments('benchmark', tmp_path, '--config.benchmark.batch_sizes=(1, 4)')
  )
  run = pretend_run(tmp_path, **config.benchmark.to_dict())
  found = run.settings.benchmark
  assert (found.batch_size, found.batch_sizes) == (16, (1, 4))
