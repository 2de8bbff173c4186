"""Pages and pictures of docs/ agree with the figures."""

import json
import pathlib
import re
import runpy

import pytest

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
MAKER = runpy.run_path(str(DOCS / 'make_tables.py'))
PAINTER = runpy.run_path(str(DOCS / 'make_pictures.py'))


@pytest.mark.parametrize('name', [*MAKER['PAGES'], *MAKER['PARTS']])
def test_page_is_current(name):
  assert (DOCS / name).read_text() == MAKER['make_page'](name), (
    'run `python docs/make_tables.py`'
  )


@pytest.mark.parametrize('name', PAINTER['PICTURES'])
def test_pictures_are_of_the_figures(name, tmp_path):
  """Drawn again they have the same words and as many marks."""
  picture = PAINTER['PICTURES'][name]
  picture.draw(PAINTER['figures'](picture), tmp_path / name)
  drawn, kept = (
    (folder / name).read_text() for folder in (tmp_path, DOCS / 'images')
  )
  for pattern in ('<text[^>]*>([^<]*)</text>', '<use ', 'description>([^<]*)<'):
    assert re.findall(pattern, drawn) == re.findall(pattern, kept), (
      'run `python docs/make_pictures.py`'
    )


def alternative(page, title):
  """What a page says for those who do not see a picture."""
  return page.read_text().partition(f'![{title}')[2].partition('](')[0]


def test_the_frontier_in_words_has_every_point_of_the_first_draw():
  figures = json.loads((DOCS / 'benchmarks' / 'compress.json').read_text())
  words = alternative(DOCS.parent / 'README.md', 'Accuracy against speed-up')
  assert words == alternative(DOCS / 'results.md', 'Accuracy against speed-up')
  for found in figures.values():
    for key, row in found['rows'].items():
      if row.get('speedup') and key.startswith('0 '):
        assert f'{100 * row["top1"]:.1f}% at {row["speedup"]:.2f}x' in words


@pytest.mark.parametrize('name', ['real_backbone', 'evidence', 'camvid'])
def test_the_changes_in_words_have_every_interval_of_the_first_draw(name):
  path = DOCS / 'benchmarks' / f'{name}.json'
  found = json.loads(path.read_text()) if path.exists() else {'rows': {}}
  words = alternative(DOCS / 'results.md', 'Change of accuracy')
  parts = [found] if 'rows' in found else found.values()
  for part in parts:
    for key, row in part['rows'].items():
      draw = key.startswith('0 ') or name == 'camvid'
      if draw and 'change' in row and 'dense more' not in key:
        change, half = (100 * value for value in row['change'])
        assert f' {change:+.1f} ± {half:.1f}' in words


def test_the_curves_in_words_have_every_point_of_the_first_draw():
  path = DOCS / 'benchmarks' / 'removal_curves.json'
  words = alternative(
    DOCS / 'results_training_free.md', 'Accuracy as attention goes'
  )
  of_curve = dict(
    part.split(': ', 1) for part in words.split('. ') if 'x' in part
  )
  titles = {'caltech101': 'Caltech-101', 'cifar10': 'CIFAR-10'}
  for name, found in json.loads(path.read_text()).items():
    rows, curves = found['rows'], {}
    for key, row in rows.items():
      if not key.startswith('0 '):
        continue
      if 'order' in row:
        starts = [sorted(row['order'][:n]) for n in range(1, 9)]
        curves[key[2 : -len(' order')]] = [('stream', s) for s in starts]
      elif starts_of(rows, key):
        kind = key[2:].partition(':')[0]
        curves.setdefault(kind, []).append((kind, row['layers']))
    for curve, points in curves.items():
      for kind, layers in points:
        row = rows.get(f'0 {kind}: {" ".join(map(str, layers))}')
        if row is not None:
          fewer = found['dense_macs'] / row['macs_executed']
          figure = f'{100 * row["top1"]:.1f}% at {fewer:.2f}x'
          shown = of_curve[f'{titles[name]}, {curve}'].rstrip('.').split(', ')
          assert figure in shown


def starts_of(rows, key):
  """Whether a row's layers are a beginning of the order of `output`."""
  order, layers = rows['0 output order']['order'], rows[key]['layers']
  return sorted(order[: len(layers)]) == layers
