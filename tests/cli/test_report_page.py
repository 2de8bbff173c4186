"""The report page as a whole: its colours, widths, pictures and bytes."""

import itertools
import re
import struct
import zlib

import pytest

from lambda_vit_jax.cli.report import (
  html,
  style,
)
from tests.support import browser
from tests.support.report_files import (
  FILES,
  write_files,
  write_metrics,
  written,
)


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('report')
  write_files(workdir)
  write_metrics(workdir, last=60)
  return written(workdir)


# Images.


def _png(side=8):
  """A black square."""

  def chunk(kind, data):
    body = kind + data
    return (
      struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))
    )

  header = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
  data = zlib.compress(b'\0' * side * (side + 1))
  parts = ((b'IHDR', header), (b'IDAT', data), (b'IEND', b''))
  return b'\x89PNG\r\n\x1a\n' + b''.join(itertools.starmap(chunk, parts))


def test_images_and_classes_that_changed_are_shown(tmp_path, undrawn):
  write_files(tmp_path)
  (tmp_path / 'pictures').mkdir()
  for index in (7, 8):
    # One of them is in no list: of an evaluation that was interrupted.
    (tmp_path / f'pictures/{index:04d}.png').write_bytes(_png())
  page = written(tmp_path)
  assert '200 that the dense model gets right are lost' in page
  assert '400 that it gets wrong are gained' in page
  (tile,) = re.findall('<figure class="small">.*?</figure>', page)
  assert 'dense says cat, pruned dog' in tile
  assert 'Classes that changed most' in page


# The whole page.


def _luminance(colour):
  parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
  linear = [
    part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
    for part in parts
  ]
  return sum(
    weight * part
    for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
  )


def contrast(one, other):
  """WCAG's ratio, 1 to 21."""
  low, high = sorted(map(_luminance, (one, other)))
  return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_as_wcag_does():
  assert contrast('#000000', '#ffffff') == pytest.approx(21)
  assert contrast('#777777', '#ffffff') == pytest.approx(4.478, abs=1e-3)


@pytest.mark.parametrize(
  'theme', [style.LIGHT, style.DARK], ids=['light', 'dark']
)
@pytest.mark.parametrize('ground', ['paper', 'card'])
@pytest.mark.parametrize('text', ['ink', 'soft', 'accent'])
def test_every_text_can_be_read(theme, ground, text):
  """AA asks 4.5 of text."""
  assert contrast(theme[text], theme[ground]) >= 4.5


@pytest.mark.parametrize(
  'theme', [style.LIGHT, style.DARK], ids=['light', 'dark']
)
@pytest.mark.parametrize('colour', [*style.PLOT, style.GREY])
def test_every_line_can_be_seen(theme, colour):
  """AA asks 3 of graphics."""
  for ground in ('paper', 'card'):
    assert contrast(colour, theme[ground]) >= 3.0


def test_no_colour_is_outside_the_tested_ones(page):
  """In the sheet and in the plots."""
  page = re.sub('<title>.*?</title>', '', page)
  known = {*style.LIGHT.values(), *style.DARK.values(), *style.PLOT, style.GREY}
  used = set(re.findall(r'(?<!&)#[0-9a-f]{6}\b', page))
  # The lines of a grid are a quarter as dark, and no information.
  assert used - known <= {'#b0b0b0'}


def test_every_drawing_fits_any_width(page):
  """A view box and no width of its own; nothing in the sheet is over 360 px."""
  drawings = re.findall('<svg[^>]*>', page)
  assert drawings
  assert all('viewBox' in drawing for drawing in drawings)
  sheet = style.sheet()
  widths = re.findall(r'(?<![-\w])(?:min-)?width: *([\d.]+)(rem|px)', sheet)
  assert all(float(n) * {'rem': 16, 'px': 1}[u] < 330 for n, u in widths)
  columns = re.findall(r'minmax\(([\d.]+)rem', sheet)
  assert columns
  assert all(float(column) * 16 < 330 for column in columns)


def test_print_has_the_light_colours():
  """The dark ones are of screens; paper would need much ink."""
  sheet = style.sheet()
  dark = sheet.index(style.DARK['paper'])
  rule = sheet.rindex('@media', 0, dark)
  assert sheet[rule:dark].startswith('@media screen and (prefers-color-scheme')
  assert '@media print' in sheet


TIMES = {
  'stages': {'select': FILES['stages.json']['select'] | {'seconds': 99.0}},
  'benchmark': {'date': '2027-01-01'},
}


@pytest.mark.parametrize('changes', [{}, TIMES], ids=['same', 'other times'])
def test_identical_runs_have_identical_pages(tmp_path, changes):
  """In two folders, and but for times, which are on three lines."""
  pages = []
  for name, values in (('one', {}), ('two', changes)):
    folder = tmp_path / name
    folder.mkdir()
    write_files(folder, **values)
    pages.append(written(folder).splitlines())
  differing = [pair for pair in zip(*pages, strict=True) if pair[0] != pair[1]]
  assert bool(differing) == bool(changes)
  for pair in differing:
    one, two = (re.sub(r'\d{4}-\d\d-\d\d', 'DAY', line) for line in pair)
    time = r'\d+ h \d+ min \(select .*? s,'
    assert re.sub(time, 'TIME', one) == re.sub(time, 'TIME', two)


def test_seconds_of_rounds_are_not_on_the_page(tmp_path, undrawn):
  """They differ between identical runs, and nobody asks for them there."""
  write_files(tmp_path)
  first = written(tmp_path)
  rounds = [
    row | {'seconds': 77.25} for row in FILES['selection.json']['rounds']
  ]
  write_files(tmp_path, selection={'rounds': rounds})
  assert written(tmp_path) == first


_COPY = """
const button = document.querySelector('.facts .copy');
const heard = [];
document.addEventListener('copy', () => heard.push(String(getSelection())));
button.click();
return {command: document.querySelector('.facts pre').textContent,
  selected: String(getSelection()), label: button.textContent,
  fonts: [...document.querySelectorAll('body *')].filter(node =>
    node.childNodes.length && !node.closest('svg')
    && parseFloat(getComputedStyle(node).fontSize) < 12).length};
"""


@pytest.mark.skipif(
  browser.CHROMIUM is None,
  reason='no chromium on this machine (apt-get install chromium)',
)
def test_the_copy_button_takes_the_command(tmp_path, undrawn):
  """Without a clipboard that only pages from a network may use."""
  write_files(tmp_path)
  found = browser.measure(written(tmp_path), 360, _COPY, tmp_path)
  assert found['command'].startswith('lambda-vit run')
  assert found['selected'].strip() == found['command']
  assert found['label'] != 'Copy'
  assert found['fonts'] == 0


def test_facts_are_escaped_by_their_sections():
  """`facts` takes HTML as values, and text as names."""
  assert '&lt;' in html.facts([('<b>', '<code>x</code>')])
