"""The stages, end to end on real digits with a network of three blocks."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.checkpoints import load, orbax_store
from lambda_vit_jax.cli import outcome, stage_table
from lambda_vit_jax.cli.stages import finished as finished_stages
from lambda_vit_jax.cli.stages import registry, select, training_job
from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import (
  CheckpointError,
  LambdaVitError,
  UsageError,
)
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.selection import nose
from lambda_vit_jax.training import loop, optim
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Phase
from lambda_vit_jax.training.metrics import read_metrics
from lambda_vit_jax.training.step import LossSettings
from tests.support.stage_runs import arguments, open_run
from tests.support.trees import assert_same


def run_stages(run):
  for name in registry.needed(run):
    registry.run_stage(run, name)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run') / 'digits'
  run_stages(open_run(workdir, '--config.evaluate.baseline=True'))
  return workdir


@pytest.fixture
def copy(finished, tmp_path):
  shutil.copytree(finished, tmp_path / 'digits')
  return tmp_path / 'digits'


def test_a_workdir_loads_the_newest_that_it_has(copy):
  """Its export, then what led to it; the dense network by its own folder."""
  dense = lv.load_pretrained(copy / 'checkpoints' / 'pretrain')
  assert not dense.removed_layers
  (chosen,) = lv.load_pretrained(copy).removed_layers
  # What a search would have left, in the place where its stage puts it.
  other = (chosen + 1) % dense.depth
  lv.export(lv.prune(dense, (other,)), copy / 'compressed', formats='orbax')
  diluted = lv.load_pretrained(copy / 'checkpoints' / 'dilute')
  assert diluted.removed_layers == (chosen,)
  for folder, found in (
    ('export', (chosen,)),
    ('checkpoints/dilute', (other,)),
    ('compressed', ()),
  ):
    shutil.rmtree(copy / folder)
    assert lv.load_pretrained(copy).removed_layers == found


def test_evaluate_wants_the_export_before_it_measures(copy, monkeypatch):
  """Not after minutes over every image, which it would then throw away."""
  shutil.rmtree(copy / 'export')

  def measured(*words, **options):
    raise AssertionError('measured first')

  monkeypatch.setattr(accuracy, 'evaluate_model', measured)
  with pytest.raises(CheckpointError, match='export'):
    registry.STAGES['evaluate'].run(open_run(copy))


def read(workdir, name):
  return json.loads((workdir / name).read_text())


@pytest.mark.parametrize(
  'name',
  [
    'config.json',
    'metrics.jsonl',
    'analysis.json',
    'selection.json',
    'evaluation.json',
    'benchmark.json',
    'report.html',
    'export/model.json',
    'export/model.safetensors',
    'export/model.stablehlo',
    'export/params',
    'checkpoints/pretrain/6',
    'checkpoints/dilute/7',
    'checkpoints/baseline/7',
  ],
)
def test_every_stage_leaves_its_file(finished, name):
  assert (finished / name).exists()


def test_no_temporary_file_is_left(finished):
  assert not [path for path in finished.iterdir() if path.name[0] == '.']


def test_the_table_of_stages_lists_every_file(finished):
  listed = [
    name for spec in stage_table.STAGES.values() for name in spec.writes
  ]
  known = (
    stage_table.CONFIG,
    stage_table.METRICS,
    stage_table.JOURNAL,
    *listed,
  )
  folders = tuple(name for name in known if name.endswith('/'))
  for path in finished.rglob('*'):
    name = path.relative_to(finished).as_posix()
    assert path.is_dir() or name in known or name.startswith(folders), name
  # A diluted classifier that is exported to the default formats.
  absent = {name for name in known if not (finished / name).exists()}
  assert absent == {
    'compressed/model.json',
    'compressed/params/',
    'compression.json',
    'export/model.bin',
    'export/model.onnx',
    'export/model.xml',
    'linear/model.json',
    'linear/params/',
  }


def test_files_have_the_fields_of_the_contract(finished):
  selection = read(finished, 'selection.json')
  assert {
    'criterion',
    'target',
    'sign',
    'num_samples',
    'base_entropy',
    'order',
    'removed',
    'rounds',
  } <= set(selection)
  assert {'scores', 'chosen', 'seconds'} <= set(selection['rounds'][0])
  assert len(selection['top1']) == len(selection['order']) + 1
  evaluation = read(finished, 'evaluation.json')
  assert list(evaluation) == ['dense', 'baseline', 'pruned', 'exported']
  common = {'top1', 'top5', 'loss', 'num_images', 'steps'}
  for name, row in evaluation.items():
    more = {'difference', 'changed'} if name == 'pruned' else set()
    assert set(row) == common | more
    assert row['num_images'] == 360
  benchmark = read(finished, 'benchmark.json')
  assert {'device', 'dtype', 'batch_size', 'speedup'} <= set(benchmark)
  for name in ('dense', 'pruned'):
    assert {
      'parameters',
      'macs',
      'macs_executed',
      'weight_bytes',
      'peak_bytes',
    } <= set(benchmark[name])
    assert set(benchmark[name]['images_per_second']) == {
      'min',
      'median',
      'max',
    }
  assert benchmark['exported']['dtype'] == 'float32'
  for name in ('dense', 'pruned', 'exported'):
    assert benchmark[name]['top1'] == evaluation[name]['top1']
  row = read_metrics(finished / 'metrics.jsonl')[-1]
  assert {
    'stage',
    'step',
    'epoch',
    'loss',
    'accuracy',
    'learning_rate',
    'lambda',
    'images_per_second',
  } <= set(row)


def test_what_changes_from_dense_to_pruned_adds_up(finished):
  """Not the paired differences of another model, or of padded images."""
  evaluation = read(finished, 'evaluation.json')
  pruned = evaluation['pruned']
  for name in ('dense', 'baseline'):
    change, width = pruned['difference'][name]
    assert change == pytest.approx(pruned['top1'] - evaluation[name]['top1'])
    assert 0 <= width < 0.1
  changed = pruned['changed']
  change = (changed['gained'] - changed['lost']) / 360
  assert change == pytest.approx(pruned['difference']['dense'][0])
  assert 0 < len(changed['images']) <= 12
  pictures = {int(p.stem) for p in (finished / 'pictures').iterdir()}
  assert pictures == {row['index'] for row in changed['images']}
  labels = open_run(finished).dataset.test.labels
  for row in changed['images']:
    assert row['label'] == str(labels[row['index']])
    assert row['before'] != row['after']


def test_the_blocks_of_a_benchmark_cost_what_the_network_does(finished):
  """But for the patches and the head, which are of no block."""
  measured = read(finished, 'benchmark.json')
  rest = {
    name: measured[name]['macs_executed']
    - sum(row['macs'] for row in measured[name]['blocks'])
    for name in ('dense', 'pruned')
  }
  assert rest['dense'] == rest['pruned'] > 0
  (removed,) = read(finished, 'selection.json')['removed']
  modes = [row['attention'] for row in measured['pruned']['blocks']]
  assert [k for k, mode in enumerate(modes) if mode != 'full'] == [removed]


def test_every_stage_is_in_the_journal(finished):
  journal = read(finished, 'stages.json')
  assert set(journal) == set(registry.STAGES) - {
    'linearize',
    'compress',
    'report',
  }
  assert all(row['seconds'] > 0 for row in journal.values())


def test_a_damaged_journal_costs_no_result(copy):
  (copy / 'stages.json').write_text('{')
  (copy / 'analysis.json').unlink()
  assert registry.run_stage(open_run(copy), 'analyze')
  assert set(read(copy, 'stages.json')) == {'analyze'}


def test_json_has_no_bits_of_resamples(copy):
  """They are for a resumed search, and thousands of characters each."""
  selection = read(copy, 'selection.json')
  assert selection['rounds'][0]['agreeing']
  found = outcome.result_of(open_run(copy), 'select')
  assert 'agreeing' not in found['rounds'][0]
  assert 'agreement' in found


def test_pruned_and_exported_agree(finished):
  evaluation = read(finished, 'evaluation.json')
  assert evaluation['pruned']['top1'] == evaluation['exported']['top1']


def test_every_row_says_how_many_steps_it_has_seen(finished):
  steps = {k: v['steps'] for k, v in read(finished, 'evaluation.json').items()}
  assert steps == {'dense': 6, 'baseline': 13, 'pruned': 13, 'exported': 13}


def test_the_baseline_goes_on_where_it_was_interrupted(copy):
  before = load.load_stage(copy, 'baseline').params
  (copy / 'evaluation.json').unlink()
  shutil.rmtree(copy / 'checkpoints' / 'baseline' / '7')
  run = open_run(copy, '--config.evaluate.baseline=True')
  assert registry.run_stage(run, 'baseline')
  assert_same(load.load_stage(copy, 'baseline').params, before)
  assert not registry.run_stage(run, 'baseline')


def test_the_best_checkpoint_is_that_of_the_highest_accuracy(finished):
  rows = [
    row
    for row in read_metrics(finished / 'metrics.jsonl')
    # Checkpoints of every second step, and the last; λ is 0 from step 4 on.
    if row['stage'] == 'dilute' and row['step'] in (4, 6, 7)
  ]
  best = max(row['holdout_accuracy'] for row in rows)
  steps = [row['step'] for row in rows if row['holdout_accuracy'] == best]
  assert load.stage_step(finished, 'dilute', best=True) in steps
  assert load.stage_step(finished, 'dilute') == 7
  load.load_stage(finished, 'dilute', best=True, finished=True)


def test_without_a_baseline_its_row_is_missing_and_that_is_said(
  copy, monkeypatch
):
  shutil.rmtree(copy / 'checkpoints' / 'baseline')
  run = open_run(copy, '--config.evaluate.baseline=True')
  lines = []
  monkeypatch.setattr(run.reporter, 'warn', lines.append)
  assert list(finished_stages.compared_models(run)) == ['dense', 'pruned']
  assert 'dense has trained fewer steps than pruned' in lines[0]


def test_the_best_checkpoint_can_be_exported(copy, monkeypatch):
  for name in ('evaluation.json', 'benchmark.json'):
    (copy / name).unlink()
  shutil.rmtree(copy / 'export')
  run = open_run(copy, '--config.export.checkpoint=best')
  # Step 6 is there as the one before the last.
  monkeypatch.setattr(orbax_store.Checkpointer, 'best_step', lambda self: 6)
  assert run.trained_steps('dilute') == 6
  best = finished_stages.pruned_model(run)
  last = load.load_stage(copy, 'dilute')
  assert np.any(best.params['head']['kernel'] != last.params['head']['kernel'])
  # What dilution starts from does not depend on it.
  assert run.trained_steps('pretrain') == 6
  monkeypatch.setattr(orbax_store.Checkpointer, 'best_step', lambda self: None)
  with pytest.raises(CheckpointError, match='no checkpoint at λ = 0 was'):
    run.load('dilute')


@pytest.mark.parametrize(
  'stage, start', [('pretrain', 0), ('dilute', 4), ('baseline', 4)]
)
def test_an_average_begins_where_the_factor_is_0(
  finished, monkeypatch, stage, start
):
  jobs = []

  def fit(job, *arguments):
    jobs.append(job)

  monkeypatch.setattr(loop, 'fit', fit)
  registry.STAGES[stage].run(open_run(finished))
  assert [job.loss.ema_start for job in jobs] == [start]


def test_every_setting_of_training_reaches_its_place(tmp_path, monkeypatch):
  """Each with a value of its own, so that two that are swapped would show."""
  values = {
    'label_smoothing': 0.11, 'mixup': 0.22, 'cutmix': 0.33, 'mix_size': 4,
    'distill': 'feature', 'distill_weight': 0.44, 'distill_temperature': 1.5,
    'ema': 0.55, 'drop_path_rate': 0.06,
  }  # fmt: skip
  built = []
  make = optim.make_optimizer
  monkeypatch.setattr(
    optim, 'make_optimizer', lambda *a: built.append(a) or make(*a)
  )
  words = [f'--config.dilute.{key}={value}' for key, value in values.items()]
  run = open_run(tmp_path, '--config.seed=7', *words)
  model = lv.create_model('vit_nano_patch2_8')
  job = training_job._job(
    run, 'dilute', model, (Phase(model.module, 40),), Dilution((1,), 4)
  )
  assert job.loss == LossSettings(
    0.11, 0.22, 0.33, 4, 'feature', 0.44, 1.5, (), 0.55, 4
  )
  assert job.seed == 7
  assert max(job.phases[0].module.drop_path_rates) == pytest.approx(0.06)
  settings = run.settings.training('dilute')
  assert built[0][0] == dataclasses.asdict(settings)
  warmup = settings.warmup_steps.steps(run.steps_per_epoch)
  peak = settings.peak_learning_rate(run.batch_size)
  assert float(job.learning_rate(warmup)) == pytest.approx(peak)
  assert float(job.learning_rate(40)) < peak / 2


def test_every_setting_of_the_search_reaches_it(tmp_path, monkeypatch):
  found = []
  monkeypatch.setattr(
    nose,
    'select',
    lambda model, batches, options, **rest: found.append(options),
  )
  words = (
    'sign=absolute', 'trial=linear', 'target=features', 'layers=(0,2)',
    'criterion=transfer_entropy',
  )  # fmt: skip
  run = open_run(
    tmp_path, '--config.seed=5', *(f'--config.select.{word}' for word in words)
  )
  model = lv.create_model('vit_nano_patch2_8')
  select._search(run, model, [], {'num_layers': 1})
  (options,) = found
  wanted = {
    'criterion': 'transfer_entropy', 'target': 'features', 'sign': 'absolute',
    'trial': 'linear', 'layers': (0, 2), 'num_layers': 1, 'seed': 5,
    'inputs': run.settings.linearize.inputs,
  }  # fmt: skip
  assert {name: getattr(options, name) for name in wanted} == wanted


def test_a_finished_run_does_nothing_again(finished):
  before = (finished / 'metrics.jsonl').read_bytes()
  stamp = (finished / 'evaluation.json').stat().st_mtime_ns
  run_stages(open_run(finished))
  assert (finished / 'metrics.jsonl').read_bytes() == before
  assert (finished / 'evaluation.json').stat().st_mtime_ns == stamp


def test_a_changed_config_is_refused_with_its_keys(finished):
  message = r'seed was 0, is 1; select\.num_layers was 1, is 2; use a new'
  with pytest.raises(UsageError, match=message):
    open_run(finished, '--config.seed=1', '--config.select.num_layers=2')
  # What changes no result may change.
  open_run(finished, '--config.log_every=7')


@pytest.mark.parametrize('batch_size', [8, 40, 360, 512])
def test_every_test_image_counts_once(finished, batch_size):
  run = open_run(finished)
  run.batch_size = batch_size
  model = run.load('dilute')
  scores = accuracy.evaluate_model(
    model, run.eval_batches(model.preprocessing), run.mesh
  )
  expected = read(finished, 'evaluation.json')['pruned']
  assert scores['num_images'] == 360
  assert scores['top1'] == expected['top1']
  # Sums of 360 float32 numbers in another order.
  np.testing.assert_allclose(scores['loss'], expected['loss'], rtol=1e-5)


def test_the_export_reloads_in_another_process(finished):
  """From `export/` alone, the logits of the checkpoint within 1e-5."""
  run = open_run(finished)
  model = run.load('dilute')
  images = next(run.eval_batches(model.preprocessing))['image']
  np.save(finished / 'images.npy', images)
  code = (
    'import sys, numpy, lambda_vit_jax as lv\n'
    'model = lv.load_pretrained(sys.argv[1])\n'
    'logits = model(numpy.load(sys.argv[2]))\n'
    'numpy.save(sys.argv[3], logits)\n'
    'print(sorted(model.params["block%02d" % model.removed_layers[0]]))\n'
  )
  output = finished / 'logits.npy'
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      code,
      str(finished / 'export'),
      str(finished / 'images.npy'),
      str(output),
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "['mlp', 'norm2']"
  np.testing.assert_allclose(np.load(output), model(images), atol=1e-5)


@pytest.mark.slow
def test_an_int8_export_is_what_is_evaluated_and_measured(copy):
  config = read(copy, 'config.json')
  config['export']['dtype'] = 'int8'
  files.write_json(copy / 'config.json', config)
  before = read(copy, 'benchmark.json')['exported']
  shutil.rmtree(copy / 'export')
  for name in ('evaluation.json', 'benchmark.json'):
    (copy / name).unlink()
  run = open_run(
    copy,
    '--config.export.dtype=int8',
    '--config.benchmark.batch_sizes=(1, 4)',
  )
  for stage in ('export', 'evaluate', 'benchmark'):
    assert registry.run_stage(run, stage)
  model = lv.load_pretrained(copy)
  assert model.module.quantization == 'weights'
  scores = read(copy, 'evaluation.json')
  # The program and the folder are the same int8 model.
  found = accuracy.evaluate_model(
    model, run.eval_batches(model.preprocessing), run.mesh
  )
  assert found['top1'] == scores['exported']['top1']
  # Rounding to 8 bits; 360 float32 losses in another order.
  np.testing.assert_allclose(
    scores['exported']['loss'], scores['pruned']['loss'], rtol=0.05
  )
  measured = read(copy, 'benchmark.json')
  assert measured['exported']['dtype'] == 'int8'
  assert measured['exported']['weight_bytes'] < before['weight_bytes']
  assert [row['batch_size'] for row in measured['sweep']] == [1, 4]
  # What is asked for is there; another size is not.
  assert not registry.run_stage(run, 'benchmark')


def test_the_public_names_are_there():
  for name in lv.__all__:
    assert getattr(lv, name) is not None
  with pytest.raises(AttributeError, match='no attribute'):
    _ = lv.nonsense


def test_report_is_one_self_contained_page(finished):
  page = (finished / 'report.html').read_text()
  assert page.count('<svg') >= 5
  assert 'src=' not in page
  assert '<link' not in page


class TestBadInput:
  """One clear line, the right exit code, nothing lost."""

  def check(self, argv, code, message, capsys):
    assert main.main(argv) == code
    error = capsys.readouterr().err
    assert message in error.replace('\n', ' ')
    assert 'Traceback' not in error

  def test_workdir_is_a_file(self, tmp_path, capsys):
    file = tmp_path / 'file'
    file.write_text('precious')
    self.check(arguments('run', file), 1, 'is a file', capsys)
    assert file.read_text() == 'precious'

  def test_workdir_cannot_be_made(self, tmp_path, capsys):
    file = tmp_path / 'file'
    file.write_text('')
    self.check(arguments('run', file / 'below'), 1, 'not writable', capsys)

  def test_a_stage_before_its_turn(self, tmp_path, capsys):
    self.check(
      arguments('dilute', tmp_path / 'new'), 1, 'run the stage', capsys
    )

  def test_batch_size_that_devices_cannot_share(self, tmp_path, capsys):
    argv = arguments('pretrain', tmp_path, '--config.batch_size=12')
    self.check(argv, 2, 'not divisible by the 8 devices', capsys)

  def test_image_size_that_patches_cannot_fill(self, tmp_path, capsys):
    argv = arguments('pretrain', tmp_path, '--config.model.image_size=9')
    self.check(argv, 2, 'not divisible by the patch size 2', capsys)

  def test_unknown_builtin_weights(self, tmp_path, capsys):
    argv = arguments('pretrain', tmp_path, '--config.init=builtin:digit')
    self.check(argv, 1, 'no such weights in the package', capsys)

  @pytest.mark.parametrize(
    'removed, message',
    [([3], 'out of range'), ([1, 1], 'twice'), ([0, 1, 2], 'at least one')],
  )
  def test_impossible_layers(self, copy, capsys, removed, message):
    shutil.rmtree(copy / 'checkpoints' / 'dilute')
    files.write_json(copy / 'selection.json', {'removed': removed})
    self.check(arguments('dilute', copy), 1, message, capsys)

  def test_a_broken_selection(self, copy, capsys):
    shutil.rmtree(copy / 'checkpoints' / 'dilute')
    (copy / 'selection.json').write_text('{"removed": [1')
    self.check(arguments('dilute', copy), 1, 'selection.json', capsys)

  def test_a_truncated_checkpoint(self, copy, capsys):
    (copy / 'evaluation.json').unlink()
    step = copy / 'checkpoints' / 'dilute' / '7'
    files = [p for p in (step / 'params').rglob('*') if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    self.check(
      arguments('evaluate', copy), 1, 'not a usable checkpoint', capsys
    )
    assert (copy / 'checkpoints' / 'dilute' / '7').exists()

  @pytest.mark.parametrize('stage', ['export', 'evaluate'])
  def test_what_is_not_trained_to_its_end(self, copy, capsys, stage):
    """Its result would count as done when the training has ended."""
    shutil.rmtree(copy / 'checkpoints' / 'dilute' / '7')
    shutil.rmtree(copy / 'export')
    (copy / 'evaluation.json').unlink()
    self.check(arguments(stage, copy), 1, 'is at step 6 of 7', capsys)

  def test_a_warm_up_longer_than_the_training(self, tmp_path, capsys):
    argv = arguments('pretrain', tmp_path, '--config.pretrain.warmup_steps=6')
    self.check(argv, 2, 'does not fit in 6 steps', capsys)

  def test_no_held_out_images(self, copy, capsys):
    (copy / 'analysis.json').unlink()
    config = read(copy, 'config.json')
    config['data']['holdout_images'] = 0
    files.write_json(copy / 'config.json', config)
    self.check(
      arguments('analyze', copy, '--config.data.holdout_images=0'),
      2,
      'keep at least 128',
      capsys,
    )
    # A criterion that looks at none needs none.
    config['select']['criterion'] = 'last'
    files.write_json(copy / 'config.json', config)
    (copy / 'selection.json').unlink()
    argv = arguments('select', copy, '--config.data.holdout_images=0')
    assert main.main([*argv, '--config.select.criterion=last']) == 0


def test_a_relative_workdir_becomes_absolute(tmp_path, monkeypatch):
  # Orbax writes to absolute paths alone.
  monkeypatch.chdir(tmp_path)
  run = open_run('runs/here')
  assert str(run.workdir) == str(tmp_path / 'runs' / 'here')
  registry.run_stage(run, 'pretrain')
  assert (tmp_path / 'runs/here/checkpoints/pretrain/6').exists()


@pytest.mark.parametrize('stage', ['select', 'dilute', 'export', 'evaluate'])
def test_a_stage_without_the_earlier_ones_is_refused(tmp_path, stage):
  run = open_run(tmp_path / 'new')
  with pytest.raises(LambdaVitError):
    registry.STAGES[stage].run(run)


def test_a_model_that_is_not_trained_cannot_be_loaded(tmp_path):
  with pytest.raises(CheckpointError):
    open_run(tmp_path / 'new').load('pretrain')


class TestTrainImages:
  """`data.train_images`: a part of the training split."""

  def test_used_images_are_a_stratified_part(self, tmp_path):
    run = open_run(
      tmp_path / 'few',
      '--config.data.train_images=400',
      '--config.data.holdout_images=100',
    )
    train, held = run.train_indices, run.holdout_indices()
    assert (len(train), len(held)) == (300, 100)
    assert not set(train) & set(held)
    counts = np.bincount(run.dataset.train.labels[np.r_[train, held]])
    whole = np.bincount(run.dataset.train.labels)
    # Shares by largest remainder: off by less than one image.
    np.testing.assert_allclose(counts, whole * 400 / whole.sum(), atol=1)

  def test_a_limit_leaves_every_class_its_share(self, tmp_path):
    """Folders are read class by class: the first images are of few classes."""
    run = open_run(tmp_path / 'run', '--config.data.holdout_images=400')
    held = run.holdout_indices()
    labels = run.dataset.train.labels
    assert set(run.holdout_indices(50)) < set(held)
    counts = np.bincount(labels[run.holdout_indices(50)])
    np.testing.assert_allclose(counts, np.bincount(labels[held]) / 8, atol=1)
    np.testing.assert_array_equal(run.holdout_indices(400), held)
    batches = run.eval_batches(
      Preprocessing((8, 8), mean=(0.5,), std=(0.5,)), 64
    )
    seen = [row for b in batches for row in b['label'][b['mask']]]
    assert len(seen) == 64
    # A draw, whose classes are those of the test set by and large.
    assert len(set(seen)) == 10

  def test_more_than_there_are(self, tmp_path):
    run = open_run(tmp_path / 'many', '--config.data.train_images=99999')
    with pytest.raises(UsageError, match='there are only'):
      run.holdout_indices()


@pytest.mark.slow
def test_probe_is_a_criterion_and_goes_on_where_it_was(tmp_path):
  more = ('--config.select.criterion=probe', '--config.select.probe_steps=2')
  run = open_run(tmp_path / 'probe', *more)
  registry.run_stage(run, 'pretrain')
  # As if interrupted: the set of `first` is rated already, too well.
  files.write_json(run.path('probe.part.json'), {'0@2': 0.0, '0@4': 0.0})
  registry.run_stage(run, 'select')
  found = json.loads(run.path('selection.json').read_text())
  assert (found['criterion'], found['removed']) == ('probe', [0])
  assert found['set_scores']['0'] == 0.0
  assert not run.path('probe.part.json').exists()


def test_a_pruned_model_is_pruned_again(finished, tmp_path, monkeypatch):
  """Every layer that is gone is named, and which were gone before."""
  (before,) = read(finished, 'selection.json')['removed']
  run = open_run(
    tmp_path / 'again',
    f'--config.init={finished / "export"}',
    '--config.pretrain.steps=0',
    '--config.select.criterion=last',
  )
  lines = []
  monkeypatch.setattr(run.reporter, 'say', lines.append)
  for stage in ('pretrain', 'select'):
    registry.run_stage(run, stage)
  new = max({0, 1, 2} - {before})
  everything = sorted([before, new])
  selection = read(run.workdir, 'selection.json')
  assert selection['removed'] == [new]
  assert selection['removed_before'] == [before]
  assert selection['all_removed'] == everything
  assert (
    f'select: attention removed from [{new}]; gone before: [{before}]; in all '
    f'{everything} of 3 blocks'
  ) in lines


@pytest.mark.slow
def test_the_baseline_is_dilution_of_no_layer(tmp_path):
  """Same images, same random choices, same rates: the same bits."""
  run = open_run(
    tmp_path / 'none',
    '--config.select.num_layers=0',
    '--config.select.criterion=first',
    '--config.dilute.drop_path_rate=0.2',
    '--config.dilute.mixup=0.8',
    '--config.dilute.ema=0.5',
  )
  for stage in ('pretrain', 'select', 'dilute', 'baseline'):
    assert registry.run_stage(run, stage)
  for weights in ('raw', 'ema'):
    stages = [
      load.load_stage(run.workdir, stage, weights=weights).params
      for stage in ('dilute', 'baseline')
    ]
    assert_same(*stages)
