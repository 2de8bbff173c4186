"""The report page: its content, and what a real browser makes of it."""

import html
import json
import re

import pytest

from lambda_vit_jax.cli.report import build, tables
from lambda_vit_jax.cli.report import html as html_lib
from lambda_vit_jax.cli.report.results import read_results
from tests.support import browser
from tests.support.report_files import FILES, write_files, write_metrics


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('report')
  write_files(workdir)
  write_metrics(workdir)
  return build.write_report(workdir)


def test_nothing_from_a_file_becomes_markup(page):
  text = page.read_text()
  assert '<script>alert' not in text
  assert '" onload' not in text
  assert text.count('<script>') == 1


def test_the_page_loads_nothing_and_links_are_relative(page):
  text = page.read_text()
  assert "default-src 'none'" in text
  assert 'src=' not in text.replace('-src', '')
  hrefs = re.findall(r'<a href="([^"]+)"', text)
  assert 'selection.json' in hrefs
  for name in hrefs:
    assert (page.parent / name).exists()
    assert not name.startswith(('/', '.'))
    assert '://' not in name


def test_a_comparison_is_of_networks_that_have_seen_as_many_steps(
  tmp_path, capsys, undrawn
):
  scores = {
    name: FILES['evaluation.json'][name] | {'steps': steps}
    for name, steps in (('dense', 0), ('pruned', 450), ('exported', 450))
  }
  write_files(tmp_path, evaluation=scores, config={'init': 'there'})
  text = build.write_report(tmp_path).read_text()
  assert 'against the dense model: top-1 79.90 % → 80.30 %' in text
  assert 'pruned was trained 450 steps more than dense' in text
  scores['baseline'] = scores['pruned'] | {'top1': 0.801}
  write_files(tmp_path, evaluation=scores, config={'init': 'there'})
  text = build.write_report(tmp_path).read_text()
  same = 'against the dense model with the same steps'
  assert f'{same}: top-1 80.10 % → 80.30 %' in text
  assert '450 steps more' not in text
  rows = html_lib.texts(tables.results_cells(read_results(tmp_path)))
  assert [row[:3] for row in rows] == [
    ['dense', '79.90', 'init'],
    ['baseline', '80.10', 'init + 450'],
    ['pruned', '80.30', 'init + 450'],
    ['exported', '80.30', 'init + 450'],
  ]
  build.print_results(tmp_path)
  assert 'baseline: the dense model' in capsys.readouterr().out


def test_a_choice_that_the_network_was_not_made_by_is_not_told(
  tmp_path, capsys, undrawn
):
  write_files(tmp_path, config={'method': 'compress'})
  assert '<h2>Selection</h2>' not in build.write_report(tmp_path).read_text()
  build.print_results(tmp_path)
  assert 'attention removed' not in capsys.readouterr().out


def test_layers_that_were_gone_before_are_named(tmp_path, capsys, undrawn):
  write_files(tmp_path, selection={'removed_before': [0, 4]})
  # Which has counted the blocks, and found something else.
  (tmp_path / 'benchmark.json').unlink()
  text = build.write_report(tmp_path).read_text()
  assert 'Gone before: 0, 4. Without attention in all: 0, 1, 2, 4.' in text
  assert text.count('<li class="gone">') == 4
  assert re.search('Block 4</b>.{,120}attention gone before', text)
  build.print_results(tmp_path)
  out = capsys.readouterr().out
  assert 'attention removed from blocks [1, 2]' in out
  assert 'gone before from blocks [0, 4]; in all [0, 1, 2, 4]' in out


def test_every_plot_has_words_and_numbers(page):
  figures = re.findall(r'<figure>.*?</figure>', page.read_text(), re.DOTALL)
  assert len(figures) == 8
  for figure in figures:
    assert re.search(r'<svg role="img" aria-label="[^"]{20,}"', figure)
    assert '<figcaption>' in figure
    assert figure.count('<tr>') > 2


def test_ids_are_unique(page):
  ids = re.findall(r' id="([^"]+)"', page.read_text())
  shared = {name for name in ids if ids.count(name) > 1}
  # Clip paths of one size are equal, and so are their names.
  assert all(re.fullmatch(r'[pm][0-9a-f]{8,}', name) for name in shared)


def test_a_page_of_an_empty_workdir(tmp_path):
  text = build.write_report(tmp_path).read_text()
  assert text.count('–') >= 18
  assert '<figure>' not in text


DAMAGE = {
  'benchmark.json': ('[]', '{', '{"batch_size": "\\u001b[2J"}'),
  'evaluation.json': ('{"dense": {"top1": 2}}', '{"pruned": []}'),
  'selection.json': ('{"removed": [-1]}', '[' * 9999),
  'analysis.json': (
    '{"profile": {"attention_entropy": [1], "mlp_entropy": []}}',
  ),
  'config.json': ('7', '{"model": {"variant": 3}}'),
  'metrics.jsonl': ('{"stage": 3, "step": 1}\n{}\n',),
  'pictures/0000.png': ('no picture',),
}


@pytest.mark.parametrize(
  'name, text', [(name, text) for name in DAMAGE for text in DAMAGE[name]]
)
def test_a_damaged_part_is_left_out_and_named(tmp_path, undrawn, name, text):
  """The rest of the page is there, and both page and terminal say what is not."""
  for other, value in FILES.items():
    (tmp_path / other).write_text(json.dumps(value))
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text(text)
  lines = []
  page = build.write_report(tmp_path, lines.append).read_text()
  (line,) = lines
  assert line.startswith(f'report: left out: {tmp_path / name}: ')
  assert '<h2>Left out</h2>' in page
  assert html.escape(line.removeprefix('report: left out: ')) in page
  for other, words in (
    ('selection.json', '<h2>Selection</h2>'),
    ('analysis.json', '<h2>Entropy per layer</h2>'),
    ('benchmark.json', '<h2>Speed</h2>'),
  ):
    assert (words in page) == (name != other)


def test_a_whole_workdir_leaves_nothing_out(page):
  assert 'Left out' not in page.read_text()


def test_parts_that_do_not_fit_together_are_dashes(tmp_path):
  """Scores of another kind, no sizes, classes that one model lacks."""
  scores = {'dense': {'top1': 0.5}, 'pruned': {'mean_iou': 0.5, 'iou': [0.5]}}
  (tmp_path / 'evaluation.json').write_text(json.dumps(scores))
  measured = FILES['benchmark.json'] | {'pruned': {}}
  (tmp_path / 'benchmark.json').write_text(json.dumps(measured))
  page = build.write_report(tmp_path, pytest.fail).read_text()
  assert 'Segmentation' in page
  build.print_results(tmp_path)


@pytest.mark.parametrize(
  'missing, head',
  [
    ([], 'mean IoU %'),
    ([1, 2], 'mean IoU % (test masks hold 1 of 3 classes)'),
  ],
)
def test_classes_that_no_mask_holds_are_told_beside_the_score(
  tmp_path, missing, head
):
  row = {'mean_iou': 1.0, 'iou': [1.0, None, None], 'missing_classes': missing}
  scores = {'dense': row, 'pruned': row, 'exported': row}
  (tmp_path / 'evaluation.json').write_text(json.dumps(scores))
  results = read_results(tmp_path)
  assert tables.results_columns(results)[1] == head
  build.write_report(tmp_path)
  said = f'{head.replace(" %", "")} 100.00 % → 100.00 %'
  assert said in (tmp_path / 'report.html').read_text()


def test_tables_sort_by_value_not_by_text():
  row = (html_lib.Cell('1.20 k', 1200.0), html_lib.Cell('–'))
  text = html_lib.table(('a', 'b'), [row], 'name')
  assert 'data-value="1200.0"' in text
  assert 'data-value=""' in text


_MEASURE = """
const root = document.documentElement;
const drawn = [...document.querySelectorAll('svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const inside = [...svg.querySelectorAll('text')].every(text => {
    const b = text.getBoundingClientRect();
    return b.left >= box.left - 1 && b.right <= box.right + 1
      && b.top >= box.top - 1 && b.bottom <= box.bottom + 1;
  });
  return {width: box.width, height: box.height, right: box.right,
    marks: svg.querySelectorAll('path').length, inside};
});
const cut = [...document.querySelectorAll('body *')].filter(node =>
  !node.closest('svg') && !node.closest('details')
  && node.clientWidth && node.scrollWidth > node.clientWidth + 1
).map(node => node.outerHTML.slice(0, 80));
const table = document.querySelector('table.sortable');
const column = () => [...table.tBodies[0].rows].map(r => r.cells[8].textContent);
const button = table.tHead.rows[0].cells[8].querySelector('button');
button.focus();
const focused = document.activeElement === button;
button.click(); const up = column();
button.click(); const down = column();
return {problems: window.problems, scroll: root.scrollWidth,
  client: root.clientWidth, drawn, cut, up, down, focused,
  sort: table.tHead.rows[0].cells[8].getAttribute('aria-sort')};
"""

needs_chromium = pytest.mark.skipif(
  browser.CHROMIUM is None,
  reason='no chromium on this machine (apt-get install chromium)',
)


@needs_chromium
@pytest.mark.parametrize('width', [360, 768, 1280])
def test_a_browser_draws_everything_and_cuts_nothing(page, tmp_path, width):
  found = browser.measure(page.read_text(), width, _MEASURE, tmp_path)
  assert found['problems'] == []
  assert found['scroll'] <= found['client'] <= width
  assert found['cut'] == []
  assert len(found['drawn']) == 8
  for picture in found['drawn']:
    assert picture['width'] > 250
    assert picture['height'] > 120
    assert picture['right'] <= width
    assert picture['marks'] > 5
    assert picture['inside']
  assert found['focused']
  assert found['up'] == ['10.0', '11.1', '11.1']
  assert found['down'] == ['11.1', '11.1', '10.0']
  assert found['sort'] == 'descending'


@needs_chromium
def test_a_browser_has_nothing_to_complain_about(page, tmp_path):
  """The page as it is, its security policy included."""
  assert browser.console(page, tmp_path) == []


@pytest.mark.parametrize('labelled', [0, 1, 4])
def test_accuracy_is_drawn_of_the_steps_that_have_one(
  tmp_path, undrawn, labelled
):
  """Steps on images without labels have a loss alone."""
  for name, value in FILES.items():
    (tmp_path / name).write_text(json.dumps(value))
  rows = [
    {'stage': 'linearize', 'step': step, 'loss': 1.0, 'lambda': 1.0}
    | ({'accuracy': 0.5} if step <= labelled else {})
    for step in range(1, 5)
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (tmp_path / 'metrics.jsonl').write_text(text)
  page = build.write_report(tmp_path).read_text()
  assert ('accuracy on training batches' in page) == (labelled > 0)
