"""Commands without a config: predict, models, check-data."""

import json

import numpy as np
import pytest
from PIL import Image

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.models.variants import VARIANTS
from tests.support.small_models import LINEAR, make_segmenter


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  names = tuple(f'digit {k}' for k in range(10))
  model = lv.create_model('vit_nano_patch2_8').replace(class_names=names)
  directory = tmp_path_factory.mktemp('predict') / 'export'
  lv.export(lv.prune(model, (1,)), directory, formats=('orbax',))
  return directory


@pytest.fixture
def picture(tmp_path, rng):
  path = tmp_path / 'picture.png'
  pixels = rng.integers(0, 256, (20, 20), dtype=np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def test_predict_gives_five_names_that_are_the_models(
  exported, picture, capsys
):
  argv = ['predict', f'--model={exported}', '--json', str(picture)]
  assert main.main(argv) == 0
  best = json.loads(capsys.readouterr().out)[str(picture)]
  assert len(best) == 5
  values = list(best.values())
  assert values == sorted(values, reverse=True)
  assert all(name.startswith('digit ') for name in best)


def test_predict_prints_one_line_per_class(exported, picture, capsys):
  assert main.main(['predict', f'--model={exported}', str(picture)]) == 0
  assert capsys.readouterr().out.count('%  digit') == 5


def test_what_segments_sees_the_whole_image(tmp_path, rng, capsys):
  """As in evaluation: in one window, beside which nothing counts."""
  model = make_segmenter(LINEAR)
  lv.export(model, tmp_path / 'export', formats=())
  pixels = rng.integers(0, 256, (16, 64), dtype=np.uint8)
  path = tmp_path / 'oblong.png'
  Image.fromarray(pixels).save(path)
  argv = ['predict', f'--model={tmp_path / "export"}', '--json', str(path)]
  assert main.main(argv) == 0
  found = json.loads(capsys.readouterr().out)[str(path)]
  canvas = Image.fromarray(pixels).resize((8, 2), Image.Resampling.BICUBIC)
  (mean,), (std,) = model.preprocessing.mean, model.preprocessing.std
  window = np.full((8, 8), round(255 * mean), np.uint8)
  window[:2] = np.asarray(canvas)
  logits = model(((window / 255 - mean) / std).astype('f4')[None, ..., None])
  best = np.asarray(logits[0, :2]).argmax(axis=-1)
  shares = np.bincount(best.reshape(-1), minlength=5) / 16
  assert found == {str(k): shares[k] for k in range(5)}
  assert max(shares) < 1


@pytest.mark.parametrize(
  'argv, code, message',
  [
    (['--model=nowhere', 'x.png'], 1, 'no such file or folder'),
    (
      ['--model=vit_mini_patch2_8_digits', 'x.png'],
      1,
      'did you mean builtin:vit_mini_patch2_8_digits?',
    ),
    (['x.png'], 2, '--model'),
    ([], 2, 'required'),
  ],
)
def test_bad_predictions_are_one_line(argv, code, message, capsys):
  assert main.main(['predict', *argv]) == code
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


@pytest.mark.parametrize('command', ['models', 'predict', 'check-data'])
def test_an_unknown_flag_is_told_with_a_remedy(command, capsys):
  given = {
    'models': [],
    'predict': ['--model=m', 'x'],
    'check-data': ['digits'],
  }
  assert main.main([command, *given[command], '--bogus']) == 2
  assert capsys.readouterr().err == (
    f'lambda-vit: {command}: unrecognized arguments: --bogus; see '
    f'lambda-vit {command} --help\n'
  )


@pytest.mark.parametrize(
  'command, flag', [('predict', '--model=DIR'), ('models', '--filter=')]
)
def test_help_lists_the_flags_of_the_command(capsys, command, flag):
  assert main.main([command, '--help']) == 0
  listed = capsys.readouterr().out.partition('flags:')[2]
  assert flag in listed.partition('environment:')[0]


@pytest.mark.parametrize('name', ['broken.png', 'missing.png'])
def test_an_unreadable_image_is_named(exported, tmp_path, capsys, name):
  (tmp_path / 'broken.png').write_bytes(b'not a picture')
  path = tmp_path / name
  assert main.main(['predict', f'--model={exported}', str(path)]) == 1
  assert name in capsys.readouterr().err


def test_models_lists_every_variant(capsys):
  assert main.main(['models', '--json']) == 0
  rows = {row['name']: row for row in json.loads(capsys.readouterr().out)}
  assert set(rows) == set(VARIANTS)
  assert rows['deit_base_patch16_224']['parameters'] == 86567656
  assert main.main(['models', '--filter=dinov2']) == 0
  assert 'deit' not in capsys.readouterr().out
  assert main.main(['models', '--filter=nothing']) == 2


def test_check_data_counts_the_digits(capsys):
  assert main.main(['check-data', 'digits', '--json']) == 0
  report = json.loads(capsys.readouterr().out)
  assert report['problems'] == []
  assert main.main(['check-data', 'image_folder:nowhere']) == 1
