"""docs/tutorial.md leads from a folder of images to ONNX, line by line."""

import re

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.support import doc_pages

pytestmark = pytest.mark.slow
PAGE = doc_pages.ROOT / 'docs' / 'tutorial.md'
# A network that needs no download, and small enough for a test; the rest of
# the config is the page's.
SUBSTITUTES = {
  'hf-hub:timm/deit_tiny_patch16_224.fb_in1k': (
    'builtin:vit_mini_patch2_8_digits'
  ),
  'deit_tiny_patch16_224': 'vit_mini_patch2_8',
  # Speed is measured for as long as it takes, which here is three rounds.
  'image_size = 112': 'image_size = 8\n  config.benchmark.rounds = 3',
}
# What a reader installs is installed here.
INSTALLS = ('python3', 'source', 'pip')


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Two classes of digits under the names that the page uses."""
  monkeypatch.chdir(tmp_path)
  pixels, labels = load_digits(return_X_y=True)
  for label, name in enumerate(('cat', 'dog')):
    of_class = pixels[labels == label].reshape(-1, 8, 8) * 15
    for index, image in enumerate(of_class[:140]):
      split = 'train' if index < 120 else 'val'
      place = tmp_path / 'photos' / split / name
      place.mkdir(parents=True, exist_ok=True)
      number = index % 120 + 1
      picture = Image.fromarray(image.astype('uint8'))
      picture.save(place / f'{number:04}.jpg', quality=95)
  return tmp_path


def test_every_line_of_the_page(folder):
  pytest.importorskip('onnxruntime', reason='needs the extra `onnx`')
  ran = []
  for language, body in re.findall(
    r'^```(bash|python)\n(.*?)^```', PAGE.read_text(), re.M | re.S
  ):
    if language == 'bash':
      for command in doc_pages.split('tutorial', body):
        program, *words = command.words
        assert program in ('lambda-vit', *INSTALLS)
        if program == 'lambda-vit':
          output = doc_pages.run(words)
          ran.append(words[0])
    elif 'get_config' in body:
      for old, new in SUBSTITUTES.items():
        assert old in body
        body = body.replace(old, new)
      (folder / 'own.py').write_text(body)
    else:
      exec(compile(body, str(PAGE), 'exec'), {})
  assert ran == ['--version', 'check-data', 'run', 'run', 'predict']
  # Best first: zeros and ones are told apart by a head of 100 steps.
  assert re.search(r'%  cat\n.*%  dog\n', output)
  assert (folder / 'runs' / 'own' / 'report.html').exists()
  for where in ('runs/own/export', 'smaller'):
    assert (folder / where / 'model.onnx').stat().st_size > 10_000
