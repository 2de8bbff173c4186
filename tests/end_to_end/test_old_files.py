"""Workdirs and exports written before the package was split into rooms.

`run_0_1_0.tar.gz` is a finished run of `configs/digits.py` with
the variant `vit_nano_patch2_8`, and `run_0_1_0.npz` holds four images with the
logits that version 0.1.0 computed for them from the workdir and the export.
"""

import json
import pathlib
import sys
import tarfile

import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax import main

FOLDER = pathlib.Path(__file__).parent

# The same products on another processor round differently; the logits are of
# order one.
TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def old_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('old')
  with tarfile.open(FOLDER / 'run_0_1_0.tar.gz') as archive:
    # Python 3.11.4 has the safe filter first; the archive is our own.
    safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
    archive.extractall(folder, **safe)
  return folder / 'nano'


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(FOLDER / 'run_0_1_0.npz'))


@pytest.mark.parametrize(
  'where, folder', [('workdir', '.'), ('export', 'export')]
)
def test_its_models_load_and_compute_the_same(old_run, golden, where, folder):
  model = lv.load_pretrained(old_run / folder)
  assert model.removed_layers == (2,)
  logits = np.asarray(model(golden['images']))
  np.testing.assert_allclose(logits, golden[where], atol=TOLERANCE)


def arguments_of(run):
  """The command line with which the run was made."""
  config = json.loads((run / 'config.json').read_text())
  return [
    '--config=configs/digits.py',
    '--config.init=',
    *(
      f'--config.{key}={value}'
      for key, value in {
        'model.variant': config['model']['variant'],
        'batch_size': config['batch_size'],
        'pretrain.steps': config['pretrain']['steps'],
        'pretrain.warmup_steps': 1,
        'select.num_layers': 1,
        'dilute.warmup_steps': 1,
        'dilute.dilution_steps': 8,
        'dilute.settle_steps': 8,
        'checkpoint_every': 1000,
        'keep_checkpoints': 1,
        'log_every': 20,
        'benchmark.rounds': 2,
        'eval_every': 0,
      }.items()
    ),
  ]


def test_its_stages_count_as_finished(old_run, capsys):
  before = (old_run / 'selection.json').read_bytes()
  code = main.main(
    ['run', f'--workdir={old_run}', '--json', *arguments_of(old_run)]
  )
  outcome = json.loads(capsys.readouterr().out)
  assert code == 0
  status = {entry['stage']: entry['status'] for entry in outcome['stages']}
  # The page is made anew by every `run`.
  assert status.pop('report', 'done') == 'done'
  assert set(status.values()) == {'already done'}, status
  assert (old_run / 'selection.json').read_bytes() == before


def test_an_export_for_the_hub_has_a_card_of_the_run(
  old_run, monkeypatch, caplog
):
  """Without the hub's package the folder is whole, and a line says how on."""
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  code = main.main(
    [
      'export',
      f'--workdir={old_run}',
      *arguments_of(old_run),
      '--config.export.hub=somebody/digits',
    ]
  )
  assert code == 0
  folder = old_run / 'export'
  assert f'hf upload somebody/digits {folder}' in caplog.text
  card = (folder / 'README.md').read_text()
  assert "lv.load_pretrained('hf-hub:somebody/digits')" in card
  results = json.loads((old_run / 'evaluation.json').read_text())
  for name in ('dense', 'pruned'):
    assert f'{100 * results[name]["top1"]:.2f}' in card
  assert lv.load_pretrained(folder).removed_layers == (2,)
