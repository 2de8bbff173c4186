"""Schemas: every kind accepts what it says, and names what it refuses."""

import pytest

from lambda_vit_jax.core.schema import (
  Anything,
  Bool,
  Choice,
  List,
  Nullable,
  Number,
  Object,
  Text,
)

WHOLE = Number(0, 9, whole=True)
ABOVE = Number(0, 9, above=True)


@pytest.mark.parametrize(
  'schema, good, bad',
  [
    (WHOLE, [0, 9], [-1, 10, 1.0, True, None, '1', [], 10**25]),
    (ABOVE, [1e-9, 9, 1], [0, -1e-9, 9.1, False, float('nan'), '1']),
    (Number(), [-(10**25), 0, 1.5], [float('inf'), float('nan'), True, 'x']),
    (Text(3), ['', 'abc', 'λ'], ['abcd', 1, None, ['a']]),
    (Text(9, r'[a-f]+', 'hex'), ['abc'], ['', 'xyz', 'abc\n', 'abcabcabca']),
    (Choice(('a', 'b')), ['a'], ['', 'c', ['a'], None, {}]),
    (Bool(), [True, False], [0, 1, 'true', None]),
    (Anything(), [None, {'a': [1]}, 'x'], []),
    (Nullable(WHOLE), [None, 3], [-1, '3', [None]]),
    (List(WHOLE, 1, 2), [[0], [0, 9]], [[], [0, 1, 2], [10], (-1,), 'ab', {}]),
    (List(WHOLE, distinct=True), [[1, 2]], [[1, 1]]),
    (Nullable(List(WHOLE)), [None, [1]], [[None], [-1]]),
    (
      Object({'a': WHOLE}, {'b': Text()}),
      [{'a': 1}, {'a': 1, 'b': '', 'c': []}],
      [{}, {'a': -1}, {'a': 1, 'b': 2}, [], None, 'a'],
    ),
    (Object({'a': WHOLE}, others=None), [{'a': 1}], [{'a': 1, 'b': 1}]),
    (Object(others=WHOLE, names=r'\d+'), [{}, {'7': 1}], [{'x': 1}, {'7': ''}]),
    (
      Object(optional={'a': List(WHOLE), 'b': List(WHOLE)}, alike=('a', 'b')),
      [{}, {'a': [1]}, {'a': [1], 'b': [2]}],
      [{'a': [1], 'b': []}],
    ),
  ],
)
def test_values_are_accepted_or_refused(schema, good, bad):
  for value in good:
    assert schema.problem(value) == '', value
  for value in bad:
    assert schema.problem(value), value
  assert schema.words


@pytest.mark.parametrize(
  'value, line',
  [
    ({}, '`a` is missing'),
    ({'a': []}, '`a` is a list of 0, but must be an object'),
    ({'a': {}}, '`a.b` is missing'),
    (
      {'a': {'b': [1, -1]}},
      '`a.b[1]` is -1, but must be a whole number from 0 to 9',
    ),
    ({'a': {'b': [], 'c': 1}}, '`a.c` is no key that belongs there'),
    ({'a': {'b': [3, 3]}}, '`a.b` holds 3 twice'),
    ([], 'the content is a list of 0, but must be an object'),
  ],
)
def test_the_key_and_the_value_are_named(value, line):
  inner = Object({'b': List(WHOLE, distinct=True)}, others=None)
  assert Object({'a': inner}).problem(value) == line


@pytest.mark.parametrize('odd', ['\x1b[2J', 'a\nb', 'x' * 5000, '\u202e'])
def test_a_problem_is_one_short_line(odd):
  for schema, value in (
    (Object(others=WHOLE), {odd: odd}),
    (Object(others=None), {odd: 1}),
    (List(WHOLE), [odd]),
    (Choice(('a',)), odd),
  ):
    line = schema.problem(value)
    assert line.isprintable()
    assert len(line) < 200


@pytest.mark.parametrize(
  'schema, words',
  [
    (Number(), 'a number'),
    (Number(whole=True), 'a whole number'),
    (Number(2), 'a number at least 2'),
    (ABOVE, 'a number above 0 and at most 9'),
    (List(WHOLE, 3, 3), 'a list of 3'),
    (Nullable(Bool()), 'true or false, or null'),
  ],
)
def test_words(schema, words):
  assert schema.words == words
