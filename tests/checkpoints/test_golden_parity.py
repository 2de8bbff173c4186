"""Every family against timm's logits (files of parity/make_golden.py)."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.checkpoints.layout_tables import stock_layout
from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.models.variants import VARIANTS
from tests.support.family_members import (
  MEMBERS,
  synthetic_arrays,
  synthetic_images,
)
from tests.support.golden import GOLDEN, assert_close


@pytest.mark.parametrize('member', MEMBERS, ids=lambda member: member.name)
def test_logits_and_blocks_are_those_of_timm(member, tmp_path, monkeypatch):
  # How it pools is for the file alone to say.
  monkeypatch.setitem(VARIANTS, member.name, member.registered)
  with np.load(GOLDEN / f'{member.name}.npz') as file:
    golden = dict(file)
  arrays = synthetic_arrays(json.loads(str(golden['shapes'])))
  path = tmp_path / 'model.safetensors'
  save_file(arrays, path)

  for size in member.image_sizes:
    model = load_pretrained(path, variant=member.name, image_size=size)
    with jax.default_matmul_precision('highest'):
      logits, taps = model.apply(synthetic_images(size))
    assert_close(logits, golden[f'{size}/logits'])
    for index in range(model.depth):
      name = f'block{index:02d}'
      assert_close(taps[name]['output'], golden[f'{size}/{name}'])

  # The same names and bits back.
  model = load_pretrained(path, variant=member.name)
  rules = stock_layout(member.variant.timm_class).rules
  for name, array in convert.encode(model.params, rules).items():
    np.testing.assert_array_equal(array, arrays.pop(name))
  assert not arrays


def test_golden_files_are_small():
  assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 400_000
