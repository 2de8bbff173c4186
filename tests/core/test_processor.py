"""What is read of the processor."""

import pytest

from lambda_vit_jax.core import processor


@pytest.fixture
def described(tmp_path, monkeypatch):
  """Makes a text what the system says of its processor."""

  def describe(text):
    path = tmp_path / 'cpuinfo'
    if text is not None:
      path.write_text(text)
    monkeypatch.setattr(processor, '_FILE', path)
    processor._values.cache_clear()

  yield describe
  processor._values.cache_clear()


@pytest.mark.parametrize(
  'text, found',
  [
    ('flags\t\t: fpu avx512_bf16 amx_tile\n', True),
    ('Features\t: fp asimd bf16 i8mm\n', True),
    ('flags\t\t: fpu avx512f\nbugs : bf16\n', False),
    (None, False),
  ],
)
def test_bfloat16_is_read_from_the_instructions(described, text, found):
  described(text)
  assert processor.has_bfloat16() == found


def test_every_core_has_its_name(described):
  described('model name\t: Some CPU @ 2 GHz\nmodel : 1\n\nmodel name\t: B\n')
  assert processor.names() == ('Some CPU @ 2 GHz', 'B')
  assert processor.instructions() == frozenset()
  described(None)
