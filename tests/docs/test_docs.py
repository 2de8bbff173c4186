"""The pages are correct: commands, config keys, Python, links."""

import contextlib
import io
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from lambda_vit_jax.configs import common
from PIL import Image

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.cli import flags
from lambda_vit_jax.cli.about import ABOUT
from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.exporters.export import FORMATS
from tests.support import doc_pages
from tests.support import settings as settings_lib

COMMANDS = doc_pages.commands()
# By tests/docs/test_tutorial.py and test_deploy_page.py, in order.
RUN_ELSEWHERE = ('docs/tutorial.md', 'docs/deploy.md')
DIGITS = 'builtin:vit_mini_patch2_8_digits'
# Placeholders for something that only a reader has.
PLACEHOLDER = re.compile(r'\b(DIR|IMAGE|NAME|FILE|MODEL|PROJECT|BUCKET)\b')
# Other programs; commands of ours that they are given are checked.
ELSEWHERE = ('gcloud', 'git', 'cd', 'export', 'ssh', 'source', 'srun', 'sbatch')
each_page = pytest.mark.parametrize('path', doc_pages.PAGES, ids=doc_pages.name)


def flatten(config, prefix=''):
  for key, value in config.items():
    yield prefix + key
    if isinstance(value, dict):
      yield from flatten(value, f'{prefix}{key}.')


def check_stage(words):
  """The stage exists, and the config file accepts every override."""
  # A made-up name means a file that a reader would write.
  words = [
    re.sub(r'^--config=(FILE|own|my_\w+)\.py', '--config=configs/digits.py', w)
    for w in words
  ]
  _, config, _ = flags.parse(words)
  settings = config.to_dict()
  settings_lib.check(settings)
  assert set(settings['export']['formats']) <= set(FORMATS)


def check_ours(words, capsys):
  if words[0] == '--help' or words[0] in ABOUT:
    assert main.main(words) == 0
    return
  # `benchmark` is a command, too.
  without_config = any(word.startswith('--model=') for word in words)
  if words[0] not in flags.COMMANDS and not without_config:
    check_stage(words)
    return
  main.main([words[0], '--help'])
  text = capsys.readouterr().out
  for word in words[1:]:
    if word.startswith('--'):
      assert word.partition('=')[0] in text
  # Commands that need only the package are run.
  if not re.search(r'--model=|:', ' '.join(words)) and not any(
    PLACEHOLDER.search(word) for word in words
  ):
    assert main.main(words) == 0


def check_pip(words):
  project = (doc_pages.ROOT / 'pyproject.toml').read_text()
  for extra in re.findall(r'\[([\w,]+)\]', ' '.join(words)):
    for one in extra.split(','):
      if 'lambda_vit_jax' in ' '.join(words) or '.[' in ' '.join(words):
        assert re.search(rf'^{one} = \[', project, re.MULTILINE)


def check_python(words, capsys):
  if words[0] == '-m' and words[1] == 'lambda_vit_jax':
    check_ours(words[2:], capsys)
  elif words[:2] == ['-m', 'pip']:
    check_pip(words[2:])
  elif words[0] == '-m':
    path = doc_pages.ROOT / (words[1].replace('.', '/') + '.py')
    assert words[1] in ('build', 'pytest', 'venv') or path.exists()
  else:
    script = doc_pages.ROOT / words[0]
    text = script.read_text()
    for word in words[1:]:
      if word.startswith('--'):
        assert word.partition('=')[0] in text


@pytest.mark.parametrize('command', COMMANDS, ids=str)
def test_commands_are_right(command, capsys):
  program, *words = command.words
  program = program.rpartition('/')[2]
  if program == 'lambda-vit':
    check_ours(words, capsys)
  elif program in ('python', 'python3'):
    check_python(words, capsys)
  elif program == 'make':
    targets = (doc_pages.ROOT / 'Makefile').read_text()
    assert re.search(rf'^{words[0]}:', targets, re.MULTILINE)
  elif program == 'pip':
    check_pip(words)
  elif program == 'tfds':
    assert words[0] == 'build'
    assert tfds.builder_cls(words[1])
    assert '--file_format=array_record' in words
  else:
    assert program in (*ELSEWHERE, 'pre-commit')


def test_commands_are_found():
  assert len(COMMANDS) > 20
  assert {c.words[1] for c in COMMANDS if c.words[0] == 'make'} >= {
    'quickstart',
    'test',
  }


@each_page
def test_config_keys_in_the_text_exist(path):
  known = set(flatten(common.base().to_dict()))
  sections = '|'.join(
    sorted({k.partition('.')[0] for k in known if '.' in k} - {'model'})
  )
  named = re.findall(
    rf'`(?:--config\.)?((?:{sections})\.[a-z_][a-z_.]*)(?:=[^`]*)?`',
    doc_pages.prose(path),
  )
  assert not {k for k in named if not re.search(r'\.(jsonl?|py)$', k)} - known


@each_page
def test_stages_in_the_text_exist(path):
  named = re.findall(r'`lambda-vit ([\w-]+)', doc_pages.prose(path))
  assert set(named) <= {*flags.STAGES, *flags.COMMANDS, *ABOUT, '--help'}


@each_page
def test_links_lead_somewhere(path):
  for link in re.findall(r'\]\(([^)\s]+)\)', doc_pages.prose(path)):
    if link.startswith('https://'):
      continue
    target, _, anchor = link.partition('#')
    file = (path.parent / target) if target else path
    assert file.exists(), link
    if anchor:
      assert anchor in doc_pages.anchors(file), link


def citations():
  """Links to pages of docs/ in docstrings and comments."""
  pattern = re.compile(r'\bdocs/([\w/]+\.md)(?:#([\w-]+))?')
  folders = ('lambda_vit_jax', 'configs', 'benchmarks', 'tests', 'notebooks')
  return sorted(
    {
      link
      for folder in folders
      for path in (doc_pages.ROOT / folder).rglob('*.py')
      for link in pattern.findall(path.read_text())
    }
  )


@pytest.mark.parametrize('page, anchor', citations())
def test_links_from_the_code_lead_somewhere(page, anchor):
  path = doc_pages.ROOT / 'docs' / page
  assert path.exists()
  assert not anchor or anchor in doc_pages.anchors(path)


@each_page
def test_functions_are_where_the_pages_say(path):
  links = re.findall(r'\]\(([^)]+\.py)\),\s+`(\w+)`', doc_pages.prose(path))
  for file, name in links:
    defined = rf'^(?:def|class) {name}\b|^{name}\b.* ='
    source = (path.parent / file).read_text()
    assert re.search(defined, source, re.MULTILINE), (file, name)


@each_page
def test_every_picture_has_a_text(path):
  assert not re.search(r'!\[\]\(', path.read_text())


def in_docs(pattern):
  """Parametrise by the files of docs/ that match a pattern."""
  paths = sorted((doc_pages.ROOT / 'docs').glob(pattern))
  return pytest.mark.parametrize('path', paths, ids=lambda path: path.name)


@in_docs('images/*')
def test_picture_is_small(path):
  assert path.stat().st_size < 150_000


@in_docs('benchmarks/*.json')
def test_figures_have_their_script(path):
  # Those of another processor, data set or length have its name at the end:
  # `runtimes_without_amx`, `evidence_on_cifar10`, `evidence_with_ten_epochs`.
  scripts = {path.stem for path in (doc_pages.ROOT / 'benchmarks').glob('*.py')}
  script, *more = re.split('_without_|_on_|_with_', path.stem)
  assert script in scripts
  assert len(more) <= 1


def test_hooks_and_ci_use_what_make_uses():
  hooks = (doc_pages.ROOT / '.pre-commit-config.yaml').read_text()
  constraints = (doc_pages.ROOT / 'constraints.txt').read_text()
  version = re.search(r'^ruff==(.+)$', constraints, re.MULTILINE)[1]
  assert f'rev: v{version}\n' in hooks
  makefile = (doc_pages.ROOT / 'Makefile').read_text()
  made = {
    target
    for workflow in (doc_pages.ROOT / '.github' / 'workflows').glob('*.yml')
    for target in re.findall(r'run: make ([\w-]+)', workflow.read_text())
  }
  assert {'test', 'test-slow', 'site'} <= made
  for target in made:
    assert re.search(rf'^{target}:', makefile, re.MULTILINE)


def test_every_file_names_the_same_version():
  changes = (doc_pages.ROOT / 'CHANGELOG.md').read_text()
  version, date = re.search(
    r'^## \[([\d.]+)\] - (\S+)$', changes, re.MULTILINE
  ).groups()
  citation = (doc_pages.ROOT / 'CITATION.cff').read_text()
  assert f'\nversion: {version}\ndate-released: {date}\n' in citation
  assert lv.__version__ == version


@in_docs('[a-z]*.md')
def test_page_is_in_the_index(path):
  index = (doc_pages.ROOT / 'docs' / 'README.md').read_text()
  assert f']({path.name})' in index


@pytest.mark.slow
@each_page
def test_python_runs(path, tmp_path, monkeypatch, rng):
  if doc_pages.name(path) in RUN_ELSEWHERE:
    return
  monkeypatch.chdir(tmp_path)
  bodies = doc_pages.fences(path, 'python')
  namespace = {}
  for body in bodies:
    code = compile(body, doc_pages.name(path), 'exec')
    # These may not be installed; tests/parity and `test_deploy_page` run those
    # lines.
    others = r'\b(torch|pytorch|timm|onnxruntime|openvino)\b'
    if re.search(others, body) and 'lv.' not in body:
      continue
    if 'model.safetensors' in body:
      # One block would keep its attention; the other six only take time.
      model = lv.drop_blocks(lv.load_pretrained(DIGITS), range(6, 12))
      lv.export(model, 'weights', ('safetensors',))
      (tmp_path / 'weights' / 'model.safetensors').rename('model.safetensors')
      shape = (64, 8, 8, 1)
      namespace['batches'] = [
        rng.normal(size=shape).astype(np.float32) for _ in range(2)
      ]
    if "'photos/'" in body:
      (tmp_path / 'photos').mkdir()
      for index, pixels in enumerate(rng.integers(0, 256, (128, 8, 8))):
        image = Image.fromarray(pixels.astype(np.uint8))
        image.save(tmp_path / f'photos/{index}.jpg')
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      exec(code, namespace)
    if 'get_config' in namespace:
      Settings.from_config(namespace['get_config']().to_dict())
    # A table on a page is the output of the code above it.
    for line in out.getvalue().splitlines():
      assert line in path.read_text()


@pytest.mark.slow
def test_commands_by_hand(tmp_path, monkeypatch):
  """Commands that need no other data work in order, as smoke runs."""
  monkeypatch.chdir(tmp_path)
  Image.new('L', (8, 8)).save('IMAGE.png')
  for label in '0123456789':
    for split in ('train', 'val'):
      folder = tmp_path / 'DIR' / split / label
      folder.mkdir(parents=True)
      # No picture twice: check-data would report it.
      shade = 20 * int(label) + (split == 'val')
      Image.new('L', (8, 8), shade).save(folder / '0.png')
  for index, split in enumerate(('train', 'val')):
    for part, mode in (('images', 'RGB'), ('masks', 'L')):
      folder = tmp_path / 'SCENES' / split / part
      folder.mkdir(parents=True)
      picture = Image.new(mode, (8, 8))
      # Both classes, and no picture twice.
      shade = 200 + index if mode == 'RGB' else 1
      picture.paste((shade,) * 3 if mode == 'RGB' else shade, (2, 2, 6, 6))
      picture.save(folder / '0.png')
  (tmp_path / 'SCENES' / 'classes.txt').write_text('ground\nthing\n')
  done = []
  for command in COMMANDS:
    line = ' '.join(command.words)
    if command.where.startswith(('docs/reference', *RUN_ELSEWHERE)):
      continue
    if command.words[0] != 'lambda-vit':
      continue
    # These need an extra or data that are not here.
    if not re.search('tfds:|idx_folder:|configs/(?!digits)|onnx', line):
      words = [
        word + ':runlocal'
        if word.startswith('--config=')
        # Two layouts cannot be one folder.
        else word.replace(
          'segmentation_folder:DIR', 'segmentation_folder:SCENES'
        )
        for word in command.words[1:]
      ]
      doc_pages.run(words)
      done.append(words[0])
  assert done[:2] == ['run', 'predict']
  assert {'help', 'check-data', 'benchmark'} <= set(done)
