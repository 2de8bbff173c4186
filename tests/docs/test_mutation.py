"""The lists of benchmarks/mutation.py name code that exists."""

import json

import pytest

from benchmarks import common, mutation, mutation_named

PACKAGE = common.ROOT / 'lambda_vit_jax'


@pytest.mark.parametrize(
  'change', mutation_named.CHANGES, ids=lambda change: change.what
)
def test_named_changes_can_be_made(change):
  source = (PACKAGE / change.file).read_text()
  assert source.count(change.old) == 1
  assert change.new != change.old
  compile(source.replace(change.old, change.new), change.file, 'exec')


def test_every_equal_change_has_a_reason():
  for entry in json.loads(mutation.EQUAL.read_text()):
    assert entry['why']
    lines = (PACKAGE / entry['file']).read_text().splitlines()
    assert entry['old'] in [line.strip() for line in lines]
    assert entry['old'] != entry['new']


@pytest.mark.parametrize('file', sorted(mutation.TESTS))
def test_files_and_their_tests_exist(file):
  assert (PACKAGE / file).exists()
  for test in mutation.TESTS[file]:
    assert (common.ROOT / 'tests' / test).exists()
