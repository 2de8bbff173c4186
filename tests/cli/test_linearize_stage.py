"""The stage `linearize`: a smaller model of a run without training."""

import json
import re
import shutil

import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.cli.stages import finished, held_out, registry
from lambda_vit_jax.core.errors import CheckpointError, DataError, UsageError
from lambda_vit_jax.training.metrics import read_metrics
from lambda_vit_jax.training_free import polish
from tests.support.stage_runs import open_run

OPTIONS = (
  '--config.method=linearize',
  '--config.pretrain.steps=2',
  '--config.select.criterion=first',
  '--config.export.formats=("safetensors",)',
  '--config.linearize.inputs=("token", "class_map")',
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  run = open_run(tmp_path_factory.mktemp('run') / 'digits', *OPTIONS)
  for name in ('pretrain', 'select', 'linearize', 'export', 'evaluate'):
    registry.run_stage(run, name)
  return run


def beside(run, folder, *more):
  """A run with the dense network of another one, which is not trained again."""
  other = folder / 'other'
  shutil.copytree(run.path('checkpoints'), other / 'checkpoints')
  shutil.copy(run.path('config.json'), other)
  return open_run(other, *OPTIONS, *more)


def test_a_run_fits_instead_of_training(run):
  names = registry.needed(run)
  assert 'linearize' in names
  assert 'dilute' not in names
  assert not run.path('checkpoints/dilute').exists()
  assert registry.STAGES['linearize'].finished(run)


def test_the_folder_holds_the_model_and_how_it_was_fitted(run):
  found = json.loads(run.path('linear/model.json').read_text())
  assert found['attention_modes'][0] == 'linear'
  assert found['linear_inputs'] == ['token', 'class_map']
  (block,) = found['linearize']['blocks']
  assert block['block_index'] == 0
  assert 0.0 <= block['residual'] <= 1.0
  # All of the held-out slice, of 17 tokens each.
  assert block['samples'] == 200 * 17


def test_later_stages_take_the_fitted_model(run):
  model = finished.load_linear(run)
  expected = lv.linearize(
    run.load('pretrain'),
    run.holdout_batches(model.preprocessing),
    (0,),
    inputs=('token', 'class_map'),
  )
  images = next(run.eval_batches(model.preprocessing))['image']
  # The fit on another number of devices.
  np.testing.assert_allclose(model(images), expected(images), atol=1e-3)
  exported = lv.load_pretrained(run.path('export'))
  np.testing.assert_allclose(exported(images), model(images), atol=1e-5)
  evaluation = json.loads(run.path('evaluation.json').read_text())
  assert evaluation['pruned']['top1'] == evaluation['exported']['top1']


@pytest.mark.slow
def test_a_polish_on_too_few_images_is_refused_before_the_fit(run, tmp_path):
  other = beside(
    run,
    tmp_path,
    '--config.linearize.polish_steps=2',
    '--config.linearize.num_images=8',
  )
  registry.run_stage(other, 'select')
  with pytest.raises(DataError, match='8 images are too few to polish on'):
    registry.run_stage(other, 'linearize')


@pytest.mark.slow
def test_the_polish_takes_what_the_config_says(run, tmp_path, monkeypatch):
  other = beside(
    run,
    tmp_path,
    '--config.linearize.polish_steps=2',
    '--config.linearize.polish_crop_area=0.7',
    '--config.linearize.polish_learning_rate=1e-4',
  )
  registry.run_stage(other, 'select')
  taken = []

  def stop(model, dense, pixels, options, mesh):
    taken.append(options)
    raise UsageError('enough')

  monkeypatch.setattr(polish, 'polish_job', stop)
  with pytest.raises(UsageError, match='enough'):
    registry.run_stage(other, 'linearize')
  assert taken == [polish.PolishOptions(2, 1e-4, 32, 0.7, 0)]


@pytest.mark.parametrize('sizes', [(8,), (5, 5), (7, 4, 3)])
def test_mirrored_copies_are_in_the_folds_of_their_originals(rng, sizes):
  """Image i is in fold i modulo 4."""
  batches = [
    {
      'image': rng.normal(size=(size, 2, 2, 1)),
      'mask': np.arange(size) < size - 1,
    }
    for size in sizes
  ]
  plain = np.concatenate([batch['image'][:-1] for batch in batches])
  found = [batch['image'] for batch in held_out.with_mirrored(batches)]
  np.testing.assert_array_equal(found[0], plain)
  assert len(found[1]) == len(plain) - len(plain) % 4
  every = np.concatenate(found)
  for place, image in enumerate(every[len(plain) :], len(plain)):
    (original,) = [
      i for i, p in enumerate(plain) if np.array_equal(p[:, ::-1], image)
    ]
    assert original % 4 == place % 4


@pytest.mark.slow
def test_mirrored_images_are_further_images(run, tmp_path):
  other = beside(run, tmp_path, '--config.linearize.mirrored=True')
  for name in ('select', 'linearize'):
    registry.run_stage(other, name)
  record = json.loads(other.path('linear/model.json').read_text())['linearize']
  assert record['mirrored']
  (block,) = record['blocks']
  assert block['samples'] == 2 * 200 * 17
  dense = run.load('pretrain')
  images = np.concatenate(
    [batch['image'] for batch in run.holdout_batches(dense.preprocessing)]
  )[:200]
  found = finished.load_linear(other)
  expected = lv.linearize(
    dense,
    [images, np.flip(images, axis=2)],
    (0,),
    inputs=('token', 'class_map'),
  )
  shown = images[:32]
  # The fit on another number of devices, in other folds.
  np.testing.assert_allclose(found(shown), expected(shown), atol=1e-3)
  # Four times what the devices may differ by.
  assert abs(found(shown) - finished.load_linear(run)(shown)).max() > 4e-3


@pytest.mark.slow
def test_norms_are_corrected_where_that_is_wanted(run, tmp_path):
  other = beside(run, tmp_path, '--config.linearize.recentre=True')
  for name in ('select', 'linearize'):
    registry.run_stage(other, name)
  record = json.loads(other.path('linear/model.json').read_text())
  assert record['linearize']['recentre']
  found = finished.load_linear(other)
  dense = run.load('pretrain')
  expected = lv.linearize(
    dense,
    run.holdout_batches(dense.preprocessing),
    (0,),
    inputs=('token', 'class_map'),
    recentre=True,
  )
  for name in ('scale', 'bias'):
    norm = found.params['norm'][name]
    # The fit on another number of devices.
    np.testing.assert_allclose(norm, expected.params['norm'][name], atol=1e-3)
    assert abs(norm - dense.params['norm'][name]).max() > 1e-3


@pytest.mark.slow
def test_attention_layers_can_be_left_out_and_mlps_refit(run, tmp_path):
  options = '--config.linearize.maps=False', '--config.linearize.refit=True'
  other = beside(run, tmp_path, *options)
  for name in ('select', 'linearize'):
    registry.run_stage(other, name)
  record = json.loads(other.path('linear/model.json').read_text())['linearize']
  assert record['refit']
  assert not record['maps']
  assert record['blocks'] == []
  fitted = [row['block_index'] for row in record['mlps']]
  assert fitted == list(range(run.load('pretrain').depth))
  found = finished.load_linear(other)
  assert found.attention_modes[0] == 'absent'
  dense = run.load('pretrain')
  absent = lv.prune(dense, (0,), 'absent')
  expected = lv.refit(absent, dense, run.holdout_batches(dense.preprocessing))
  images = next(run.eval_batches(dense.preprocessing))['image']
  # The fit on another number of devices.
  np.testing.assert_allclose(found(images), expected(images), atol=1e-3)
  assert abs(found(images) - absent(images)).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize('given', [False, True])
def test_whole_blocks_can_be_dropped(run, tmp_path, given):
  dense = run.load('pretrain')
  images = list(run.holdout_batches(dense.preprocessing))
  gone = (0,) if given else lv.choose_blocks(dense, images, 1)
  other = beside(
    run,
    tmp_path,
    '--config.linearize.refit=True',
    '--config.select.criterion=last',
    '--config.linearize.drop_blocks=(0,)'
    if given
    else '--config.linearize.num_drop_blocks=1',
  )
  for name in ('select', 'linearize'):
    registry.run_stage(other, name)
  record = json.loads(other.path('linear/model.json').read_text())
  assert record['linearize']['dropped'] == list(gone)
  found = finished.load_linear(other)
  short = lv.drop_blocks(dense, gone)
  assert found.kept_blocks == short.kept_blocks
  # The attention of the last block, unless the block itself is gone.
  layers = () if dense.depth - 1 in gone else (short.depth - 1,)
  expected = lv.refit(short, dense, images)
  expected = lv.linearize(
    expected,
    images,
    layers,
    inputs=('token', 'class_map'),
    refit=True,
    dense=dense,
  )
  assert found.attention_modes == expected.attention_modes
  batch = next(run.eval_batches(dense.preprocessing))['image']
  # The fit on another number of devices.
  np.testing.assert_allclose(found(batch), expected(batch), atol=1e-3)
  if given:
    return
  # Later stages read the same folder in both cases.
  for name in ('export', 'evaluate', 'report'):
    registry.run_stage(other, name)
  evaluation = json.loads(other.path('evaluation.json').read_text())
  assert evaluation['pruned']['top1'] == evaluation['exported']['top1']
  page = other.path('report.html').read_text()
  (block,) = re.findall(f'<b>Block {gone[0]}</b>.*?</li>', page)
  assert 'block dropped' in block


def test_merging_counts_blocks_as_the_dense_network_does(run, tmp_path):
  depth = run.load('pretrain').depth
  merge = [1, *[0] * (depth - 2), 2]
  other = beside(
    run,
    tmp_path,
    '--config.select.num_layers=0',
    '--config.linearize.drop_blocks=(0,)',
    f'--config.model.merge={merge}',
  )
  for name in ('select', 'linearize', 'report'):
    registry.run_stage(other, name)
  found = finished.pruned_model(other)
  assert found.module.merge == tuple(merge[1:])
  page = other.path('report.html').read_text()
  (block,) = re.findall('<b>Block 0</b>.*?</li>', page)
  assert 'block dropped' in block


def test_a_linearized_run_does_not_care_how_a_dilution_would_start(tmp_path):
  open_run(
    tmp_path / 'other',
    *OPTIONS,
    '--config.linearize.num_drop_blocks=1',
    '--config.dilute.start=linear',
  )


def test_which_blocks_to_drop_is_said_once(tmp_path):
  number = '--config.linearize.num_drop_blocks=1'
  with pytest.raises(UsageError, match='give one of the two'):
    open_run(tmp_path / 'other', number, '--config.linearize.drop_blocks=(0,)')
  with pytest.raises(UsageError, match='a warm start has all its blocks'):
    open_run(tmp_path / 'other', number, '--config.dilute.start=linear')


def test_a_warm_start_needs_maps(tmp_path):
  with pytest.raises(UsageError, match=r'linearize\.maps=False'):
    open_run(
      tmp_path / 'other',
      '--config.dilute.start=linear',
      '--config.linearize.maps=False',
    )


def test_a_run_that_dilutes_does_not_fit(tmp_path):
  run = open_run(tmp_path / 'other')
  assert 'linearize' not in registry.needed(run)
  assert 'dilute' in registry.needed(run)
  with pytest.raises(CheckpointError, match='run the stage `linearize` first'):
    finished.load_linear(run)


def test_an_unknown_method_is_one_line(tmp_path):
  with pytest.raises(UsageError, match=r"config\.method='prune'.*dilute or"):
    open_run(tmp_path / 'other', '--config.method=prune')


@pytest.mark.slow
def test_dilution_by_way_of_the_maps(tmp_path):
  run = open_run(
    tmp_path / 'warm',
    '--config.dilute.start=linear',
    '--config.pretrain.steps=2',
    '--config.select.criterion=first',
  )
  assert {'linearize', 'dilute'} <= set(registry.needed(run))
  for name in ('pretrain', 'select', 'linearize', 'dilute'):
    registry.run_stage(run, name)
  # λ leads to the map in two steps, away in two, and stays 0 for three.
  rows = read_metrics(run.path('metrics.jsonl'))
  factors = [row['lambda'] for row in rows if row['stage'] == 'dilute']
  assert factors == [1.0, 0.5, 1.0, 0.5, 0.0, 0.0, 0.0]
  model = finished.pruned_model(run)
  assert model.attention_modes == ('identity', 'full', 'full')
  assert set(model.params['block00']) == {'mlp', 'norm2'}


def test_an_unknown_start_is_one_line(tmp_path):
  with pytest.raises(UsageError, match='use attention or linear'):
    open_run(tmp_path / 'other', '--config.dilute.start=lineer')
