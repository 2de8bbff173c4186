"""`benchmark.runtimes`, and `benchmark --model` and `predict --runtime`."""

import json

import numpy as np
import pytest
from etils import epath

from lambda_vit_jax import main
from lambda_vit_jax.cli import result_files, runtime_comparison
from lambda_vit_jax.cli.report import build, runtime_table
from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.exporters import export, runtimes
from lambda_vit_jax.models.edits import drop_blocks, prune
from lambda_vit_jax.models.model import create_model


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  model = create_model('vit_nano_patch2_8', seed=1, removed_layers=(1,))
  folder = tmp_path_factory.mktemp('runtimes') / 'export'
  export.export(model, folder, formats=('stablehlo',))
  return folder


def row(**more):
  rates = {'min': 1.0, 'median': 2.0, 'max': 3.0}
  return {'images_per_second': rates, 'largest_difference': None} | more


MEASURED = {
  'device': 'd',
  'date': 'today',
  'batch_size': 2,
  'dtype': 'float32',
  'speedup': 1.0,
  'threads': 3,
  'versions': {'jax': '1', 'openvino': '2'},
  'runtimes': {
    'jax': {
      'float32': {
        'dense': row(peak_bytes=10**6, speedup=1.0),
        'pruned': row(speedup=1.5, top1=0.5, num_images=7),
      }
    },
    'openvino': {'int8': {'dense': row(largest_difference=0.25)}},
    'torch': {},
  },
} | {name: {} for name in ('dense', 'pruned', 'exported')}


@pytest.fixture(scope='module')
def printed(exported):
  """What `benchmark --model --json` prints, of JAX and an absent runtime."""
  with pytest.MonkeyPatch.context() as patch:
    out = []
    patch.setattr('builtins.print', lambda *a, **k: out.append(a))
    patch.setattr(
      runtimes, 'missing', lambda name: 'no such thing' * (name != 'jax')
    )
    argv = ['benchmark', f'--model={exported}', '--runtimes=jax,torch']
    more = ['--batch_size=2', '--rounds=2', '--json', '--quiet']
    assert main.main([*argv, *more]) == 0
  return json.loads(next(a[0] for a in out if a and a[0].startswith('{')))


@pytest.mark.slow
def test_every_model_is_measured_and_the_absent_runtime_left_out(printed):
  assert list(printed['runtimes']) == ['jax']
  found = printed['runtimes']['jax']
  assert set(found['float32']) == {'dense', 'pruned', 'exported'}
  assert set(found['int8']) == {'dense', 'pruned'}
  assert printed['threads'] >= 1
  assert printed['batch_size'] == 2
  assert {'jax', 'python'} <= set(printed['versions'])
  for row in found['float32'].values():
    # The same function in another order of summation.
    assert row['largest_difference'] < 1e-4
  assert found['int8']['pruned']['largest_difference'] > 1e-4


def test_the_table_and_the_page_have_a_row_for_each(tmp_path, capsys):
  rows = runtime_table.cells(MEASURED)
  same = ['2.0', '1.0 to 3.0']
  assert [[cell.text for cell in row] for row in rows] == [
    ['jax', 'float32', 'dense', *same, '–', '1.00 MB', '–', '–'],
    ['jax', 'float32', 'pruned', *same, '1.50', '–', '50.00', '–'],
    ['openvino', 'int8', 'dense', *same, '–', '–', '–', '2.5e-01'],
  ]
  runtime_table.show(MEASURED)
  shown = ' '.join(capsys.readouterr().out.split())
  assert 'd, 3 threads each, batch 2, top-1 of the first 7 test' in shown
  files.write_json(tmp_path / 'benchmark.json', MEASURED)
  assert result_files.read(epath.Path(tmp_path), 'benchmark.json') == MEASURED
  page = build.write_report(tmp_path).read_text()
  assert page.count('<td data-label="computes in"') == 3


def test_a_runtime_that_fails_is_left_out_in_one_line(monkeypatch):
  def fail(*arguments):
    raise CheckpointError('the file is broken')

  monkeypatch.setattr(runtime_comparison, '_measure', fail)
  lines = []
  reporter = type('', (), {'warn': lambda self, line: lines.append(line)})()
  found = runtime_comparison.compare_runtimes(
    ['jax'], {}, None, None, None, reporter
  )
  assert found['runtimes'] == {'jax': {}}
  assert lines == ['benchmark: jax left out: the file is broken']
  assert runtime_table.cells(found) == []


def test_the_dense_network_of_an_export_has_every_layer():
  dense = create_model('vit_nano_patch2_8')
  found = runtime_comparison.dense_like(drop_blocks(prune(dense, (0,)), (1,)))
  assert found.module == dense.module
  assert found.num_parameters == dense.num_parameters


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--runtimes=jacks'], "--runtimes: unknown runtime 'jacks'"),
    (['--batch_size=0'], '--batch_size=0: must be above 0'),
    (['--seconds=nan'], '--seconds=nan: must be above 0'),
    (['more'], 'unrecognized arguments: more'),
  ],
)
def test_wrong_flags_are_one_line(argv, message, capsys):
  assert main.main(['benchmark', '--model=x', *argv]) == 2
  assert message in capsys.readouterr().err


def test_predict_computes_with_the_runtime(exported, tmp_path, monkeypatch):
  """What is printed is of the runtime's logits, not of the model's."""
  picture = tmp_path / 'x.png'
  build_image(picture)
  asked = []

  def open_export(name, folder):
    asked.append((name, folder))
    return lambda images: np.eye(10, dtype=np.float32)[None, 7] * 50

  monkeypatch.setattr(runtimes, 'open_export', open_export)
  out = []
  monkeypatch.setattr('builtins.print', lambda *a, **k: out.append(a))
  argv = ['predict', f'--model={exported}', '--runtime=openvino', '--json']
  assert main.main([*argv, str(picture)]) == 0
  assert asked == [('openvino', str(exported))]
  (line,) = [a[0] for a in out if a]
  (best,) = json.loads(line).values()
  assert next(iter(best)) == '7'


def build_image(path):
  from PIL import Image

  Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
