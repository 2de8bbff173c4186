"""Tables at the prompt and in notebooks: short, aligned and escaped."""

import io

import pytest
import rich.console

from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.tables import MOST_LINES, Shown, Table


def make_table(num_rows, caption=''):
  rows = [(str(10**i), 'x' * i) for i in range(num_rows)]
  return Table('Title', ('number', 'text'), rows, caption)


@pytest.mark.parametrize('caption', ['', 'a caption'])
@pytest.mark.parametrize('num_rows', [0, 1, 17, 18, 19, 100])
def test_text_has_at_most_twenty_lines(num_rows, caption):
  lines = str(make_table(num_rows, caption)).splitlines()
  assert MOST_LINES == 20
  assert len(lines) <= MOST_LINES
  assert lines[0] == 'Title'
  assert lines[-1] == (caption or lines[-1])
  body = lines[1 : -1 if caption else None]
  shown = [line for line in body if line.split()[0].isdigit()]
  if len(shown) < num_rows:
    # One line reports how many rows are left out.
    assert body[-1] == f'  … {num_rows - len(shown)} more rows'
    assert len(lines) == MOST_LINES
  else:
    assert body[-1].split()[0] in ('number', str(10 ** max(num_rows - 1, 0)))


def test_columns_are_aligned():
  lines = str(make_table(8)).splitlines()[1:]
  start = lines[0].index('text')
  for index, line in enumerate(lines[2:], start=1):
    assert line[start:] == 'x' * index
    assert line[start - 2 : start] == '  '
  assert all(line == line.rstrip() for line in lines)


def test_an_empty_header_takes_no_line():
  table = Table('Title', ('', ''), [('a', 'b')])
  assert str(table).splitlines() == ['Title', '  a  b']


def test_rows_of_other_lengths_are_refused():
  with pytest.raises(ValueError):
    str(Table('Title', ('one', 'two'), [('a',)]))


def test_html_is_escaped():
  text = '<script>alert("&")</script>'
  page = Table(text, (text,), [(text,)], text)._repr_html_()
  assert '<script' not in page
  escaped = '&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;'
  assert page.count(escaped) == 4
  assert page.count('<tr>') == page.count('</tr>') == 2


def test_html_has_every_row():
  page = make_table(100)._repr_html_()
  assert page.count('<tr>') == 101
  assert '<p>' not in page


def test_rich_shows_every_cell():
  console = rich.console.Console(file=io.StringIO(), width=80)
  console.print(make_table(3, 'a caption'))
  text = console.file.getvalue()
  for word in ('Title', 'number', '100', 'xx', 'a caption'):
    assert word in text


class Pair(Shown):
  """Two numbers."""

  def table(self):
    return Table('Pair', ('a', 'b'), [('1', '2')])


def test_a_shown_object_looks_like_its_table():
  pair = Pair()
  assert repr(pair) == str(pair.table()) == 'Pair\n  a  b\n  1  2'
  assert pair._repr_html_() == pair.table()._repr_html_()
  assert str(pair.__rich__().title) == 'Pair'


def test_preprocessing_is_one_line_and_a_table_in_notebooks():
  preprocessing = Preprocessing((224, 192))
  text = repr(preprocessing)
  assert '\n' not in text
  for words in ('224 × 192 RGB', 'bicubic', 'crop 0.875', '(0.485, 0.456'):
    assert words in text
  page = preprocessing._repr_html_()
  for name, value in preprocessing.to_json().items():
    assert (
      f'<tr><td>{name}</td><td>{value}</td></tr>'.replace("'", '&#x27;') in page
    )
