"""Commands without a config: predict, models, check-data."""

import json

import numpy as np
import pytest
import rich.console
from PIL import Image
from safetensors.numpy import save_file

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.checkpoints import convert, infer
from lambda_vit_jax.cli import commands
from lambda_vit_jax.models.variants import VARIANTS
from tests.support.pictures import STORED, encode, photo, tagged
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


@pytest.fixture
def album(tmp_path, rng):
  """A folder of three images, the second of which is broken."""
  folder = tmp_path / 'album'
  (folder / 'deep').mkdir(parents=True)
  for name in ('a.png', 'b.webp', 'deep/c.bmp'):
    pixels = rng.integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
  (folder / 'b.webp').write_bytes(b'not a picture')
  (folder / 'notes.txt').write_text('')
  return folder


def test_a_broken_image_does_not_discard_the_others(exported, album, capsys):
  missing = 'https://host/missing.png'
  argv = ['predict', f'--model={exported}', '--topk=2', missing, str(album)]
  assert main.main(argv) == 1
  output, errors = capsys.readouterr()
  assert output.count('%  digit') == 4
  assert [line for line in output.splitlines() if line[0] != ' '] == [
    str(album / 'a.png'),
    str(album / 'deep/c.bmp'),
  ]
  gone, broken = errors.splitlines()
  assert gone.startswith(f'lambda-vit: {missing}: is a URL')
  assert broken.startswith(f'lambda-vit: {album}/b.webp: not a readable image')


def test_json_holds_the_answers_and_the_errors(exported, album, capsys):
  argv = ['predict', f'--model={exported}', '--json', '--topk=3', str(album)]
  assert main.main(argv) == 1
  found = json.loads(capsys.readouterr().out)
  assert [len(found[str(album / n)]) for n in ('a.png', 'deep/c.bmp')] == [3, 3]
  assert list(found[str(album / 'b.webp')]) == ['error']


@pytest.mark.parametrize(
  'arguments, code, message',
  [
    (['https://host/a.png'], 1, 'https://host/a.png: is a URL; download'),
    (['ftp://host/a.png'], 1, 'is a URL'),
    (['--topk=0', 'a.png'], 2, '--topk=0: must be at least 1'),
    (['--topk=many', 'a.png'], 2, 'invalid int value'),
  ],
)
def test_what_predict_cannot_do_is_one_line(
  exported, arguments, code, message, capsys
):
  assert main.main(['predict', f'--model={exported}', *arguments]) == code
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


def test_a_folder_without_images_is_told(exported, tmp_path, capsys):
  (tmp_path / 'notes.txt').write_text('')
  assert main.main(['predict', f'--model={exported}', str(tmp_path)]) == 1
  assert 'a folder that holds no image' in capsys.readouterr().err


def test_predict_sees_what_a_viewer_shows(exported, tmp_path, rng, capsys):
  """Turned, on white where transparent, and floats as grey levels."""
  shown = np.asarray(photo(20, 14, rng).convert('L'))
  alpha = np.full_like(shown, 255)
  alpha[:, :5] = 0
  white = np.where(alpha, shown, 255)
  files = {
    'plain.png': encode(Image.fromarray(white), 'PNG'),
    'clear.png': encode(Image.fromarray(np.stack([shown, alpha], -1)), 'PNG'),
    'floats.tif': encode(Image.fromarray((white / 255).astype('f4')), 'TIFF'),
    **{f'{k}.png': tagged(white, k) for k in STORED},
  }
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  paths = [str(tmp_path / name) for name in files]
  assert main.main(['predict', f'--model={exported}', '--json', *paths]) == 0
  answers = list(json.loads(capsys.readouterr().out).values())
  assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize('name', ['broken.png', 'missing.png'])
def test_an_unreadable_image_is_named(exported, tmp_path, capsys, name):
  (tmp_path / 'broken.png').write_bytes(b'not a picture')
  path = tmp_path / name
  assert main.main(['predict', f'--model={exported}', str(path)]) == 1
  assert name in capsys.readouterr().err


@pytest.mark.parametrize('levels', [(0, 40), (128, 256)])
def test_predict_does_not_warn_of_its_own_images(
  exported, tmp_path, rng, levels
):
  """A dark or bright picture, normalised, may lie within 0 to 1."""
  pixels = rng.integers(*levels, (8, 8), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  argv = ['predict', f'--model={exported}', str(tmp_path / 'a.png')]
  assert main.main(argv) == 0


def test_predict_takes_the_variant_that_it_asks_for(
  tmp_path, monkeypatch, capsys
):
  """The advice of a refusal is a flag of the command that refuses."""
  names = ['vit_nano_patch2_8', 'vit_mini_patch2_8']
  monkeypatch.setattr(infer, 'candidates', lambda shapes, rules: names)
  model = lv.create_model(names[0], num_classes=3)
  save_file(convert.encode(model.params), tmp_path / 'model.safetensors')
  Image.new('L', (8, 8)).save(tmp_path / 'a.png')
  argv = ['predict', f'--model={tmp_path}/model.safetensors']
  argv.append(str(tmp_path / 'a.png'))
  assert main.main(argv) == 1
  assert 'predict: --variant' in capsys.readouterr().err
  assert main.main([*argv, f'--variant={names[0]}']) == 0


def test_models_lists_every_variant(capsys):
  assert main.main(['models', '--json']) == 0
  rows = {row['name']: row for row in json.loads(capsys.readouterr().out)}
  assert set(rows) == set(VARIANTS)
  assert rows['deit_base_patch16_224']['parameters'] == 86567656
  assert rows['deit_base_patch16_224']['family'] == 'DeiT'
  assert rows['deit3_base_patch16_224']['family'] == 'DeiT III'
  assert rows['vit_base_patch16_clip_224']['checked_against'] == [
    'timm',
    'transformers',
    'OpenCLIP',
  ]
  assert main.main(['models', '--filter=dinov2']) == 0
  assert 'deit' not in capsys.readouterr().out
  assert main.main(['models', '--filter=nothing']) == 2


@pytest.mark.parametrize(
  'pattern, wanted',
  [
    ('DINOv2', lambda name: 'dinov2' in name),
    ('deit*224', lambda name: name.startswith('deit') and '224' in name),
    ('*.mae', lambda name: name.endswith('.mae')),
    ('*', lambda name: True),
  ],
)
def test_filters_ignore_case_and_take_stars(pattern, wanted, capsys):
  assert main.main(['models', f'--filter={pattern}', '--json']) == 0
  found = [row['name'] for row in json.loads(capsys.readouterr().out)]
  assert found == sorted(filter(wanted, VARIANTS))


@pytest.mark.parametrize('width', [80, 100, 160])
def test_names_of_models_are_whole_on_any_terminal(width, capsys, monkeypatch):
  console = rich.console.Console(width=width)
  monkeypatch.setattr(commands, 'stdout_console', lambda: console)
  assert main.main(['models']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert max(map(len, lines)) <= width
  shown = {line.split()[0] for line in lines if line.strip()}
  assert set(VARIANTS) <= shown
  assert any('hf-hub:' in line for line in lines) == (width == 160)


def test_check_data_counts_the_digits(capsys):
  assert main.main(['check-data', 'digits', '--json']) == 0
  report = json.loads(capsys.readouterr().out)
  assert report['problems'] == []
  assert main.main(['check-data', 'image_folder:nowhere']) == 1


def test_problems_of_the_data_are_within_the_json(tmp_path, rng, capsys):
  for split in ('train', 'val'):
    path = tmp_path / split / 'cat'
    path.mkdir(parents=True)
    pixels = rng.integers(0, 256, (4, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(path / 'a.png')
  (tmp_path / 'train/cat/b.png').write_bytes(b'text')
  source = f'image_folder:{tmp_path}'
  assert main.main(['check-data', source, '--json']) == 1
  output, error = capsys.readouterr()
  assert json.loads(output)['problems']
  assert 'b.png cannot be decoded' in error
