"""Runs that segment, end to end on real digits laid on textures."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.cli import flags
from lambda_vit_jax.cli.stages import (
  evaluate,
  evaluate_masks,
  pretrain,
  registry,
  select,
)
from lambda_vit_jax.cli.stages.finished import load_linear, pruned_model
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import LambdaVitError, UsageError
from lambda_vit_jax.evaluation import changes, scores
from lambda_vit_jax.models.decoders import Decoder, spread_blocks
from lambda_vit_jax.models.variants import VARIANTS, get_variant
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.runtime.progress import Reporter

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = 'configs/ade20k_upernet_deit_base.py'


def open_run(workdir, *more, arguments='linear,runlocal'):
  _, config, _ = flags.parse(
    ['run', f'--config={CONFIG}:{arguments}', f'--workdir={workdir}', *more]
  )
  run = Run(config.to_dict(), str(workdir), Reporter(quiet=True))
  # Programs for fewer devices compile faster.
  grid = np.asarray(jax.devices()[:2]).reshape(2, 1)
  run.mesh = jax.sharding.Mesh(grid, sharding.BATCH_AXES)
  return run


SMALL = (
  '--config.model.image_size=8',
  '--config.segment.stride=6',
  '--config.segment.pictures=2',
  '--config.eval_every=2',
  '--config.dilute.distill=soft',
)


# Sizes and speed are measured by a slow test.
STAGES = ('pretrain', 'select', 'dilute', 'export', 'evaluate', 'report')

# Two digits and the background: minutes.
TRAINED = (
  '--config.model.variant=scenes',
  '--config.segment.num_classes=3',
  '--config.segment.evaluation=whole',
  '--config.segment.scale=(0.85, 1.2)',
  '--config.segment.most_of_one=1.0',
  '--config.segment.photometric=0',
  '--config.segment.flip=0',
  '--config.segment.dropout=0',
  '--config.batch_size=16',
  '--config.pretrain.steps=700',
  '--config.pretrain.learning_rate=3e-3',
  '--config.pretrain.b2=0.98',
  '--config.pretrain.warmup_steps=50',
  '--config.pretrain.drop_path_rate=0',
  '--config.dilute.learning_rate=1e-3',
  '--config.dilute.warmup_steps=10',
  '--config.dilute.dilution_steps=150',
  '--config.dilute.settle_steps=300',
  '--config.dilute.drop_path_rate=0',
  '--config.log_every=50',
  '--config.checkpoint_every=1000',
)


# The other formats are those of the first run.
ONE_FORMAT = '--config.export.formats=("safetensors",)'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('segment') / 'run'
  run = open_run(workdir, *SMALL)
  for name in STAGES:
    registry.run_stage(run, name)
  return run


def read(run, name):
  return json.loads(run.path(name).read_text())


@pytest.mark.slow
def test_every_stage_leaves_its_file(finished):
  for name in (
    'selection.json',
    'evaluation.json',
    'report.html',
    'export/model.json',
    'export/model.stablehlo',
    'pictures/0000.png',
    'pictures/0001.png',
    'checkpoints/dilute/4',
  ):
    assert finished.path(name).exists(), name
  scores = read(finished, 'evaluation.json')
  assert set(scores) == {'dense', 'pruned', 'exported'}
  change, width = scores['pruned'].pop('difference')['dense']
  assert change == pytest.approx(
    scores['pruned']['mean_iou'] - scores['dense']['mean_iou']
  )
  assert 0 < width < 1
  for row in scores.values():
    assert set(row) == {
      'mean_iou',
      'pixel_accuracy',
      'iou',
      'missing_classes',
      'num_pixels',
      'num_images',
      'steps',
    }
    assert row['num_images'] == 360
    # At the size of the stored scenes, whatever the network's.
    assert row['num_pixels'] == 360 * 24 * 24
    assert len(row['iou']) == 11
  # One function, stored and run in another way.
  assert scores['pruned']['mean_iou'] == pytest.approx(
    scores['exported']['mean_iou'], abs=1e-3
  )
  rows = [
    json.loads(line)
    for line in finished.path('metrics.jsonl').read_text().splitlines()
  ]
  assert 0 < rows[-1]['holdout_accuracy'] <= 1
  assert 'holdout_mean_iou' in rows[-1]


def test_images_of_all_processes_are_compared_in_one_order(monkeypatch, rng):
  """Each has every second image; one has no labelled pixel."""
  areas = rng.integers(1, 9, (5, 2, 3))
  areas[2] = 0
  # A class that is predicted where it is not, and one that is not there.
  areas[0, 0, 1] = areas[3, :, 2] = 0
  sent = []
  for part in (0, 1):
    mine = {k: areas[k] for k in range(part, 5, 2)}
    monkeypatch.setattr(
      evaluate_masks.processes, 'gather', lambda rows: sent.append(rows) or sent
    )
    found = evaluate_masks._of_all_processes(mine, (5, 3))
  assert json.loads(json.dumps(sent)) == sent
  np.testing.assert_array_equal(found, areas)


def test_images_that_a_model_lacks_are_not_compared(rng):
  """It could not be decoded then, or has no labelled pixel."""
  ours, other = rng.integers(1, 9, (2, 6, 2, 3))
  other[4] = 0
  found = evaluate_masks._differences({'dense': other, 'pruned': ours})
  there = [0, 1, 2, 3, 5]
  expected = changes.iou_difference(ours[there], other[there])
  assert found == {'difference': {'dense': expected}}
  other[1:] = 0
  assert not evaluate_masks._differences({'dense': other, 'pruned': ours})


@pytest.mark.slow
def test_selection_looks_at_the_backbones_features(finished):
  found = read(finished, 'selection.json')
  assert (found['target'], found['num_samples']) == ('features', 128)
  dense = finished.load('pretrain')
  images = [
    batch['image'][batch['mask']]
    for batch in finished.holdout_batches(dense.preprocessing)
  ]
  selection = lv.nose(lv.backbone(dense), images, 1, target='features')
  assert list(selection.removed) == found['removed']


@pytest.mark.slow
def test_the_report_shows_the_pictures(finished):
  page = finished.path('report.html').read_text()
  assert 'mean IoU %' in page
  assert page.count('href="data:image/png;base64,') == 2
  assert 'img-src data:' in page
  assert len(re.findall('image, truth, dense, pruned', page)) == 4


@pytest.mark.slow
def test_another_evaluation_of_the_same_run(finished, tmp_path):
  """Once its file is gone; no picture of the one before stays."""
  workdir = tmp_path / 'run'
  shutil.copytree(finished.workdir, workdir)
  (workdir / 'evaluation.json').unlink()
  run = open_run(
    workdir,
    *SMALL,
    '--config.segment.evaluation=whole',
    '--config.segment.pictures=1',
  )
  registry.run_stage(run, 'evaluate')
  assert [path.name for path in run.path('pictures').iterdir()] == ['0000.png']
  assert read(run, 'evaluation.json')['pruned']['num_images'] == 360


@pytest.mark.slow
def test_the_export_segments(finished, tmp_path):
  model = lv.load_pretrained(finished.path('export'))
  pruned = pruned_model(finished)
  assert model.removed_layers == pruned.removed_layers != ()
  images = next(finished.eval_batches(model.preprocessing))['image'][:2]
  np.testing.assert_allclose(model(images), pruned(images), atol=1e-5)
  shares = scores.top_classes(model, images)
  assert all(0 <= v <= 1 for row in shares for v in row.values())
  assert set(shares[0]) <= set(model.class_names)
  # Its decoder is kept where it fits, and made afresh where it does not.
  init = f'--config.init={finished.path("export")}'
  same = pretrain.starting_model(open_run(tmp_path / 'same', *SMALL, init))
  np.testing.assert_array_equal(
    same.params['decoder']['classify']['kernel'],
    model.params['decoder']['classify']['kernel'],
  )
  other = pretrain.starting_model(
    open_run(tmp_path / 'other', *SMALL, init, '--config.segment.num_classes=3')
  )
  assert other.num_classes == 3
  assert other.removed_layers == model.removed_layers


@pytest.mark.slow
def test_short_dilutions_choose_by_the_loss_of_pixels(finished, tmp_path):
  run = open_run(
    tmp_path / 'probe',
    *SMALL,
    '--config.select.criterion=probe',
    '--config.select.probe_steps=2',
    f'--config.resume_from={finished.workdir}',
  )
  for name in ('pretrain', 'select'):
    registry.run_stage(run, name)
  found = read(run, 'selection.json')
  assert (found['criterion'], len(found['removed'])) == ('probe', 1)
  losses = found['set_scores'].values()
  # Of eleven classes, by a network that is hardly trained: near log 11.
  assert all(0 < loss < 2 * np.log(11) for loss in losses)
  assert found['num_samples'] == len(run.holdout_indices())


@pytest.mark.slow
def test_tokens_merge_without_training(finished, tmp_path):
  """The trained steps are taken over; the dense network has every token."""
  run = open_run(
    tmp_path / 'merging',
    *SMALL,
    ONE_FORMAT,
    '--config.model.merge=3',
    f'--config.resume_from={finished.workdir}',
  )
  for name in ('pretrain', 'select', 'dilute', 'export', 'evaluate'):
    registry.run_stage(run, name)
  merged, plain = map(pruned_model, (run, finished))
  assert any(merged.module.merge_counts)
  images = next(run.eval_batches(merged.preprocessing))['image'][:4]
  exported = lv.load_pretrained(run.path('export'))
  np.testing.assert_allclose(exported(images), merged(images), atol=1e-5)
  np.testing.assert_allclose(
    lv.merge_tokens(merged, 0)(images), plain(images), atol=1e-5
  )
  assert np.abs(merged(images) - plain(images)).max() > 1e-4
  # Two stages have scored two networks of the same weights.
  scores, others = (read(r, 'evaluation.json') for r in (run, finished))
  assert scores['dense'] == others['dense']
  assert scores['pruned'] != others['pruned']


@pytest.mark.slow
def test_whole_blocks_are_dropped_in_front_of_a_decoder(finished, tmp_path):
  """And the result is a start, whose decoder stays."""
  run = open_run(
    tmp_path / 'shorter',
    *SMALL,
    ONE_FORMAT,
    '--config.method=linearize',
    '--config.select.num_layers=0',
    '--config.linearize.num_drop_blocks=1',
    '--config.linearize.refit=True',
    f'--config.resume_from={finished.workdir}',
  )
  for name in ('pretrain', 'select', 'linearize', 'export', 'evaluate'):
    registry.run_stage(run, name)
  dense, short = run.load('pretrain'), pruned_model(run)
  assert (dense.depth, short.depth, len(short.kept_blocks)) == (3, 2, 2)
  np.testing.assert_array_equal(
    short.params['decoder']['classify']['kernel'],
    dense.params['decoder']['classify']['kernel'],
  )
  assert read(run, 'evaluation.json')['exported']['num_images'] == 360
  start = pretrain.starting_model(
    open_run(tmp_path / 'start', *SMALL, f'--config.init={run.path("export")}')
  )
  assert start.kept_blocks == short.kept_blocks
  np.testing.assert_array_equal(
    start.params['decoder']['classify']['kernel'],
    dense.params['decoder']['classify']['kernel'],
  )


def test_a_classifier_becomes_a_start(tmp_path):
  """Also a pruned one, whose blocks stay pruned, at another size."""
  model = lv.prune(lv.create_model('vit_nano_patch2_8'), (1,))
  lv.export(model, tmp_path / 'export', formats=())
  run = open_run(
    tmp_path / 'run',
    f'--config.init={tmp_path / "export"}',
  )
  start = pretrain.starting_model(run)
  assert start.module.segmentation == Decoder('linear', channels=16)
  assert start.attention_modes == ('full', 'identity', 'full')
  assert start.class_names[:2] == ('background', '0')
  assert start.module.image_size == (24, 24)
  assert 'head' not in start.params
  np.testing.assert_array_equal(
    start.params['block00']['attn']['qkv']['kernel'],
    model.params['block00']['attn']['qkv']['kernel'],
  )


@pytest.fixture
def segmenting(tmp_path):
  """The export of a network with the decoder of these runs."""
  model = lv.with_decoder(
    lv.prune(lv.create_model('vit_nano_patch2_8'), (1,)),
    Decoder('linear', channels=16),
    11,
  )
  lv.export(model, tmp_path / 'export', formats=())
  return model, f'--config.init={tmp_path / "export"}'


@pytest.mark.slow
@pytest.mark.parametrize('kinds', [('linear', 'upernet'), ('upernet',) * 2])
def test_another_decoder_on_a_shorter_network(kinds, tmp_path, monkeypatch):
  """Fresh where it is of another kind, and renumbered where it is not."""
  tall = dataclasses.replace(
    get_variant('vit_nano_patch2_8'), name='tall', depth=5, image_size=24
  )
  monkeypatch.setitem(VARIANTS, 'tall', tall)
  dense = lv.create_model('tall')
  for old, new in (kinds, kinds[::-1]):
    blocks = spread_blocks(5) if old == 'upernet' else ()
    gone = min(set(range(5)) - {*blocks})
    model = lv.with_decoder(dense, Decoder(old, blocks, channels=16), 11)
    folder = tmp_path / f'{old}-{new}'
    lv.export(lv.drop_blocks(model, (gone,)), folder, formats=())
    start = pretrain.starting_model(
      open_run(
        tmp_path / 'run',
        '--config.model.variant=tall',
        f'--config.init={folder}',
        f'--config.segment.decoder={new}',
        arguments='runlocal',
      )
    )
    found = start.module.segmentation
    assert found.kind == new
    assert start.depth == 4
    kept = np.array_equal(
      start.params['decoder']['classify']['kernel'],
      model.params['decoder']['classify']['kernel'],
    )
    assert kept == (old == new)


def test_dropout_is_the_configs(segmenting, tmp_path):
  """It is of the training, and not of the weights."""
  model, init = segmenting
  start = pretrain.starting_model(
    open_run(tmp_path / 'run', *SMALL, init, '--config.segment.dropout=0.3')
  )
  assert start.module.segmentation == Decoder(
    'linear', channels=16, dropout=0.3
  )
  np.testing.assert_array_equal(
    start.params['decoder']['classify']['kernel'],
    model.params['decoder']['classify']['kernel'],
  )


def test_a_segmenter_becomes_a_classifier(segmenting, tmp_path, images):
  """With a head on the mean of its patches, which are what was trained."""
  model, init = segmenting
  start = pretrain.starting_model(
    open_run(tmp_path / 'run', *SMALL, init, '--config.task=classify')
  )
  assert start.module.segmentation is None
  assert start.module.pooling == 'avg'
  assert start.removed_layers == (1,)
  assert start(images).shape == (len(images), 10)
  np.testing.assert_array_equal(
    start.params['block00']['attn']['qkv']['kernel'],
    model.params['block00']['attn']['qkv']['kernel'],
  )


def test_a_speedup_is_of_the_network_and_its_decoder(tmp_path):
  """Of which a search sees the backbone alone."""
  dense = lv.with_decoder(
    lv.create_model('vit_nano_patch2_8'), Decoder('linear', channels=16), 11
  )
  plain = lv.backbone(dense)
  whole, part = (
    model.macs() / lv.prune(model, (0,)).macs() for model in (dense, plain)
  )
  assert whole < part
  run = open_run(
    tmp_path / 'run',
    *SMALL,
    '--config.pretrain.steps=2',
    '--config.select.criterion=first',
    f'--config.select.target_speedup={(whole + part) / 2}',
  )
  pretrain.pretrain(run)
  select.select(run)
  assert read(run, 'selection.json')['removed'] == [0, 1]


@pytest.mark.parametrize(
  'more, message',
  [
    ('--config.task=detect', 'config.task='),
    ('--config.pretrain.mixup=0.8', 'are not mixed'),
    ('--config.select.criterion=loss_increase', 'needs a class per image'),
    ('--config.segment.decoder=unet', 'is not known'),
    ('--config.pretrain.schedule=line', 'use cosine or poly'),
    ('--config.data.source=idx_folder:x', 'with task=segment'),
    ('--config.segment.num_classes=20', 'have 2 to 11'),
  ],
)
def test_what_does_not_fit_is_refused_before_training(tmp_path, more, message):
  with pytest.raises(LambdaVitError, match=message):
    # Most when the run is opened; what needs the data set in the stage.
    registry.run_stage(open_run(tmp_path / 'run', *SMALL, more), 'pretrain')
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def write_masks(folder, values):
  """Images of two classes, written as these numbers."""
  for split in ('train', 'val'):
    for kind in ('images', 'masks'):
      (folder / split / kind).mkdir(parents=True)
    for index in range(130 if split == 'train' else 2):
      mask = np.full((8, 8), values[0], np.uint8)
      mask[:, index % 8 :] = values[1]
      for kind in ('images', 'masks'):
        Image.fromarray(mask).save(folder / split / kind / f'{index}.png')
  return (
    *SMALL,
    f'--config.data.source=segmentation_folder:{folder}',
    '--config.segment.num_classes=2',
    '--config.data.holdout_images=8',
  )


def test_masks_of_0_and_255_stop_the_run(tmp_path, capfd):
  """255 is ignored: one class would be left, and every score be perfect."""
  flags = write_masks(tmp_path / 'data', (0, 255))
  argv = ['pretrain', f'--config={CONFIG}:linear,runlocal', '--quiet']
  assert main.main([*argv, f'--workdir={tmp_path}/run', *flags]) == 1
  error = capfd.readouterr().err
  assert 'the training masks hold 0, beside 255 for no class' in error
  assert error.count('\n') == 1
  assert not (tmp_path / 'run/checkpoints').exists()


@pytest.mark.slow
def test_a_run_says_what_it_reads_and_which_classes_no_mask_has(
  tmp_path, capfd
):
  flags = write_masks(tmp_path / 'data', (0, 1))
  (tmp_path / 'data/train/images/notes.txt').write_text('')
  argv = ['pretrain', f'--config={CONFIG}:linear,runlocal']
  flags = (
    *flags,
    '--config.segment.num_classes=3',
    '--config.pretrain.steps=2',
  )
  assert main.main([*argv, f'--workdir={tmp_path}/run', *flags]) == 0
  lines = capfd.readouterr().err.splitlines()
  assert (
    'pretrain: 130 images to train on (train), 2 to test on (val), 3 classes; '
    'train without 1 .txt'
  ) in lines
  assert 'pretrain: images of 8 x 8 pixels, grey, are read as they are' in lines
  assert 'warning: no training mask holds the class 2' in lines


@pytest.mark.slow
@pytest.mark.parametrize('key, value', [('evaluation', 'both'), ('stride', 9)])
def test_evaluation_options_are_checked(finished, key, value):
  broken = open_run(finished.workdir, *SMALL)
  segment = dataclasses.replace(broken.settings.segment, **{key: value})
  broken.settings = dataclasses.replace(broken.settings, segment=segment)
  with pytest.raises(UsageError, match=f'config.segment.{key}'):
    evaluate.evaluate_all(broken)


def test_colours_are_apart_and_none_is_black():
  found = evaluate_masks.colours(np.arange(-1, 150)[None])[0].astype(int)
  assert not found[0].any()
  assert len({tuple(c) for c in found}) == 151
  # Of neighbours, in some channel.
  assert (np.abs(np.diff(found[1:], axis=0)).max(axis=1) > 40).all()


# Trains, and so wants programs that are compiled to run fast.
PROGRAM = """
import dataclasses, sys
from lambda_vit_jax import main
from lambda_vit_jax.models import variants

nano = variants.get_variant('vit_nano_patch2_8')
variants.VARIANTS['scenes'] = dataclasses.replace(
  nano, name='scenes', image_size=24, embed_dim=48, depth=4, num_heads=3
)
for stage in ('pretrain', 'select', 'dilute', 'export', 'evaluate'):
  if main.main([stage, *sys.argv[1:]]):
    sys.exit(1)
"""


def mean_ious(workdir, *more):
  """Of the networks of a run, in a process of its own."""
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      PROGRAM,
      f'--config={CONFIG}:linear,runlocal',
      f'--workdir={workdir}',
      *TRAINED,
      *more,
    ],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  scores = json.loads((workdir / 'evaluation.json').read_text())
  return (scores[name]['mean_iou'] for name in ('dense', 'pruned', 'exported'))


@pytest.mark.slow
def test_a_trained_network_scores_and_so_does_the_pruned(tmp_path):
  """Mean IoU of 0.80 and more; without an attention within 0.01 of that."""
  dense, pruned, exported = mean_ious(tmp_path / 'run')
  assert dense >= 0.80
  assert pruned >= dense - 0.01
  assert exported == pytest.approx(pruned, abs=1e-3)
  # The same weights with 48 of 144 tokens at the end.
  _, merged, exported = mean_ious(
    tmp_path / 'merged',
    f'--config.resume_from={tmp_path / "run"}',
    '--config.model.merge=32',
  )
  assert merged >= dense - 0.01
  assert exported == pytest.approx(merged, abs=1e-3)


@pytest.mark.slow
def test_the_config_runs_locally(tmp_path):
  """UperNet and sliding windows, by the command that the config names."""
  argv = ['run', f'--config={CONFIG}:runlocal', f'--workdir={tmp_path}/run']
  assert main.main([*argv, '--quiet']) == 0
  scores = json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
  assert scores['exported']['num_pixels'] == 360 * 24 * 24
  for name in ('analysis.json', 'benchmark.json'):
    assert (tmp_path / 'run' / name).exists()


@pytest.mark.slow
@pytest.mark.parametrize('method', ['linearize', 'dilute'])
def test_affine_maps_come_with_the_decoder(tmp_path, method):
  """Without training, and as a warm start."""
  more = (f'--config.method={method}', '--config.dilute.start=linear')
  run = open_run(tmp_path / 'run', *SMALL, *more)
  for name in registry.needed(run)[:-2]:
    registry.run_stage(run, name)
  dense, pruned = run.load('pretrain'), pruned_model(run)
  fitted = load_linear(run)
  assert 'linear' in fitted.attention_modes
  np.testing.assert_array_equal(
    fitted.params['decoder']['classify']['kernel'],
    dense.params['decoder']['classify']['kernel'],
  )
  assert ('linear' in pruned.attention_modes) == (method == 'linearize')
  scores = read(run, 'evaluation.json')
  assert scores['pruned']['num_images'] == 360
