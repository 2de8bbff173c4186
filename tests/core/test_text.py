"""`printable`: one line of a terminal, whatever the text holds."""

import unicodedata

import pytest

from lambda_vit_jax.core.text import LONGEST_LINE, printable


@pytest.mark.parametrize(
  'text, line',
  [
    ('a class of λ, 日本語 and é', 'a class of λ, 日本語 and é'),
    ('two\u3000words\xa0more', 'two\u3000words\xa0more'),
    ('\x1b[2J\x1b]0;title\x07', r'\x1b[2J\x1b]0;title\x07'),
    ('a\nb\r\tc\x7f\x9b', r'a\nb\r\tc\x7f\x9b'),
    ('\u202eevil\u2028', r'\u202eevil\u2028'),
    ('\ud800', r'\ud800'),
    ('', ''),
    (3, '3'),
  ],
)
def test_text_becomes_one_line(text, line):
  assert printable(text) == line


def test_no_control_character_passes():
  """Of the planes that have any, 1,024 characters at a time."""
  for start in (*range(0, 0x20000, 1 << 10), 0xE0000):
    part = map(chr, range(start, start + (1 << 10)))
    line = printable(''.join(part), 1 << 14)
    assert '…' not in line[-1:]
    kinds = {unicodedata.category(character) for character in line}
    assert not kinds & {'Cc', 'Cf', 'Cs', 'Cn', 'Co', 'Zl', 'Zp'}


@pytest.mark.parametrize('text', ['x' * 1001, '\n' * 600, '\x1b' * 10_000])
def test_a_long_line_is_cut(text):
  line = printable(text)
  assert len(line) == LONGEST_LINE
  assert line.endswith('…')


def test_a_line_of_the_greatest_length_is_whole():
  assert printable('x' * LONGEST_LINE) == 'x' * LONGEST_LINE
