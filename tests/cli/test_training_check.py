"""Training that cannot work is refused before anything is computed or bound."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
from lambda_vit_jax.configs import digits
from PIL import Image

from lambda_vit_jax import main
from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli import task
from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.cli.stages import pretrain
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.exporters import extras
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.training import step_memory
from tests.support.stage_runs import arguments, open_run
from tests.support.trees import assert_same

BUILTIN = 'builtin:vit_mini_patch2_8_digits'
MINI = (f'--config.init={BUILTIN}', '--config.model.variant=vit_mini_patch2_8')


def refused(where, capsys, *more):
  """The error of `run`, which must leave nothing behind."""
  assert main.main(arguments('run', where, *more)) == 2
  error = capsys.readouterr().err
  assert 'starting' not in error
  lines = [x for x in error.splitlines() if x.startswith('lambda-vit: ')]
  assert len(lines) == 1
  assert not where.exists() or not list(where.iterdir())
  return lines[0]


@pytest.mark.parametrize(
  'warmup, settle',
  # The same unit is compared before the data set is open, others after that:
  # an epoch of the digits has 37 batches of 32.
  [('1000', '3'), ('7', '3'), ('2ep', '3'), ('100', '2ep')],
)
def test_a_warm_up_of_a_late_stage_that_does_not_fit(
  tmp_path, capsys, warmup, settle
):
  line = refused(
    tmp_path / 'run',
    capsys,
    f'--config.dilute.warmup_steps={warmup}',
    f'--config.dilute.settle_steps={settle}',
  )
  assert f'config.dilute.warmup_steps={warmup}: does not fit in 4 +' in line


def test_epochs_that_round_to_no_step(tmp_path, capsys):
  line = refused(
    tmp_path / 'run',
    capsys,
    '--config.dilute.dilution_steps=0.001ep',
    '--config.dilute.settle_steps=0.001ep',
    '--config.dilute.warmup_steps=0',
  )
  assert 'config.dilute: 0.001ep + 0.001ep is no step' in line


def test_a_workdir_that_is_the_folder_of_the_images(
  tmp_path, capsys, monkeypatch
):
  for number in range(8):
    path = tmp_path / 'photos' / str(number % 2) / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', (8, 8), number).save(path)
  before = sorted(tmp_path.rglob('*'))
  monkeypatch.chdir(tmp_path)
  source = f'--config.data.source=image_folder:{tmp_path}/photos'
  assert main.main(arguments('run', 'photos/', source)) == 2
  error = capsys.readouterr().err
  assert 'is the folder of the images' in error
  assert 'starting' not in error
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('name', ['onnx', 'openvino'])
def test_a_format_whose_package_is_missing(tmp_path, capsys, monkeypatch, name):
  monkeypatch.setattr(extras, 'is_installed', lambda package: False)
  formats = f"--config.export.formats=('orbax','{name}')"
  assert main.main(arguments('run', tmp_path / 'run', formats)) == 1
  error = capsys.readouterr().err
  assert 'starting' not in error
  assert f'format {name}: needs the package {name}; install it' in error
  assert f'or leave `{name}` out of the formats' in error


def test_a_final_rate_above_the_peak(tmp_path, capsys):
  line = refused(tmp_path / 'run', capsys, '--config.dilute.learning_rate=1e-6')
  assert 'config.dilute.final_learning_rate=1e-05' in line


def test_a_batch_larger_than_the_data_set(tmp_path, capsys):
  line = refused(tmp_path / 'run', capsys, '--config.batch_size=100000')
  assert 'config.batch_size=100000: there are only' in line


def test_a_batch_larger_than_the_memory(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(step_memory, 'device_bytes', lambda: 1 << 18)
  line = refused(tmp_path / 'run', capsys)
  assert 'config.batch_size=32: a training step takes at least' in line
  assert 'model.remat=True' in line


@pytest.mark.parametrize('held', [1437, 1420])
def test_a_slice_that_leaves_too_little_to_train_on(tmp_path, capsys, held):
  line = refused(
    tmp_path / 'run', capsys, f'--config.data.holdout_images={held}'
  )
  assert (
    f'there are only {1437 - held} images to train on, as config.data' in line
  )


@pytest.mark.parametrize('held', [0, 1])
def test_too_few_images_to_select_on(tmp_path, capsys, held):
  line = refused(
    tmp_path / 'run', capsys, f'--config.data.holdout_images={held}'
  )
  assert f'config.data.holdout_images={held}: selection and analysis' in line


def test_random_weights_that_no_step_would_train(tmp_path, capsys):
  line = refused(tmp_path / 'run', capsys, '--config.pretrain.steps=0')
  assert 'the dense model would stay random; set config.pretrain.steps' in line


@pytest.fixture(scope='module')
def three_classes(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for split, name, index in itertools.product(
    ('train', 'val'), ('a', 'b', 'c'), range(16)
  ):
    path = folder / split / name / f'{index}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(path)
  return (
    f'--config.data.source=image_folder:{folder}',
    '--config.data.holdout_images=8',
  )


def test_a_new_head_that_no_step_would_train(tmp_path, capsys, three_classes):
  line = refused(
    tmp_path / 'run', capsys, *MINI, *three_classes, '--config.pretrain.steps=0'
  )
  assert 'the head for 3 classes is new (the weights have 10)' in line
  assert 'set config.pretrain.steps' in line


def test_a_new_head_has_the_seed_of_the_run():
  model = create_model('vit_nano_patch2_8')
  dataset = types.SimpleNamespace(num_classes=3, class_names=('a', 'b', 'c'))
  heads = []
  for seed in (0, 1, 1):
    config = digits.get_config().to_dict() | {'seed': seed}
    found = task.with_outputs(Settings.from_config(config), model, dataset)
    heads.append(np.asarray(found.params['head']['kernel']))
  assert not np.array_equal(heads[0], heads[1])
  np.testing.assert_array_equal(heads[1], heads[2])


def test_a_new_head_that_is_trained_is_said(tmp_path, three_classes, capsys):
  run = open_run(tmp_path / 'run', *MINI, *three_classes)
  assert pretrain.starting_model(run).num_classes == 3
  assert f'{BUILTIN}: the head for 3 classes is new' in capsys.readouterr().err


def test_a_kept_head_of_other_classes_is_said(tmp_path, monkeypatch, capsys):
  run = open_run(tmp_path / 'run', *MINI, '--config.pretrain.steps=0')
  model = load.load_pretrained(BUILTIN).replace(class_names=tuple('abcdefghij'))
  monkeypatch.setattr(load, 'load_pretrained', lambda *_, **__: model)
  run.dataset = dataclasses.replace(
    run.dataset, class_names=tuple('0123456789')
  )
  assert_same(pretrain.starting_model(run).params, model.params)
  assert 'its classes have other names' in capsys.readouterr().err


def test_trained_weights_of_the_same_classes_need_no_step(tmp_path, capsys):
  run = open_run(tmp_path / 'run', *MINI, '--config.pretrain.steps=0')
  assert pretrain.starting_model(run).num_classes == 10
  assert 'other names' not in capsys.readouterr().err


def test_a_refused_command_names_one_key(tmp_path):
  with pytest.raises(UsageError, match=r'^config\.dilute\.ema=2 must be less'):
    open_run(tmp_path, '--config.dilute.ema=2.0')
