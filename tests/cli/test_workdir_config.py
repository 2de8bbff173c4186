"""A value binds a workdir once a result was computed with it, not before."""

import json

import pytest
from lambda_vit_jax.configs import common

from lambda_vit_jax.cli import config_differences, workdir_config
from lambda_vit_jax.core.errors import UsageError

# Results in the order in which a run of method `dilute` leaves them.
RESULTS = (
  'checkpoints/pretrain/9',
  'analysis.json',
  'selection.json',
  'checkpoints/dilute/9',
  'export/model.json',
  'evaluation.json',
)


def values(**changes):
  config = json.loads(json.dumps(common.base().to_dict()))
  for key, value in changes.items():
    section, _, name = key.partition('__')
    if name:
      config[section][name] = value
    else:
      config[section] = value
  return config


def leave(workdir, name):
  path = workdir / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix:
    path.write_text('{}')
  else:
    path.mkdir()


def saved(workdir):
  return json.loads((workdir / 'config.json').read_text())


# Each change, and the first result after which it is refused.
@pytest.mark.parametrize(
  'change, first',
  [
    ({'seed': 9}, 'checkpoints/pretrain/9'),
    ({'data__source': 'tfds:mnist'}, 'checkpoints/pretrain/9'),
    ({'pretrain__steps': 9}, 'checkpoints/pretrain/9'),
    ({'model__variant': 'vit_nano_patch2_8'}, 'checkpoints/pretrain/9'),
    ({'analyze__num_images': 9}, 'analysis.json'),
    ({'select__num_layers': 6}, 'selection.json'),
    ({'dilute__settle_steps': 9}, 'checkpoints/dilute/9'),
    ({'model__merge': 2}, 'checkpoints/dilute/9'),
    ({'evaluate__baseline': False}, None),
    ({'export__dtype': 'int8'}, 'export/model.json'),
    ({'method': 'linearize'}, 'export/model.json'),
    ({'segment__channels': 9}, 'checkpoints/pretrain/9'),
    ({'segment__evaluation': 'slide'}, 'evaluation.json'),
    ({'segment__stride': 9}, 'evaluation.json'),
    ({'segment__pictures': 9}, 'evaluation.json'),
    ({'linearize__ridge': 0.5}, None),
    ({'benchmark__rounds': 3}, None),
    ({'log_every': 3}, None),
  ],
)
def test_a_value_binds_from_the_first_result_that_it_went_into(
  tmp_path, change, first
):
  assert workdir_config.claim(tmp_path, values())
  bound = False
  for name in RESULTS:
    leave(tmp_path, name)
    bound = bound or name == first
    if bound:
      with pytest.raises(UsageError, match='made with other values'):
        workdir_config.claim(tmp_path, values(**change))
    else:
      assert not workdir_config.claim(tmp_path, values(**change))
      assert not workdir_config.claim(tmp_path, values())


def test_what_does_not_bind_yet_is_taken_over(tmp_path):
  workdir_config.claim(tmp_path, values())
  leave(tmp_path, 'checkpoints/pretrain/9')
  workdir_config.claim(tmp_path, values(select__num_layers=3))
  assert saved(tmp_path)['select']['num_layers'] == 3
  leave(tmp_path, 'selection.part.json')
  with pytest.raises(UsageError) as caught:
    workdir_config.claim(
      tmp_path, values(select__num_layers=4, export__dtype='int8')
    )
  assert str(caught.value) == (
    f'--workdir={tmp_path}: made with other values: select.num_layers was 3, '
    'is 4; use a new --workdir, or the old values'
  )
  # Refused as a whole.
  assert saved(tmp_path)['export']['dtype'] == 'float32'


def test_a_deleted_result_still_binds_by_what_was_made_from_it(tmp_path):
  workdir_config.claim(tmp_path, values())
  leave(tmp_path, 'checkpoints/dilute/9')
  with pytest.raises(UsageError, match=r'select\.num_layers was 5, is 4'):
    workdir_config.claim(tmp_path, values(select__num_layers=4))


@pytest.mark.parametrize(
  'old, change, result, binds',
  [
    # Maps that the run ends with, or that dilution goes by way of.
    ({}, {'linearize__ridge': 1.0}, 'linear/model.json', True),
    ({}, {'linearize__ridge': 1.0}, 'checkpoints/dilute/9', False),
    (
      {'dilute__start': 'linear'},
      {'linearize__ridge': 1.0},
      'checkpoints/dilute/9',
      True,
    ),
    (
      {'method': 'linearize'},
      {'linearize__ridge': 1.0},
      'export/model.json',
      True,
    ),
    (
      {'method': 'linearize'},
      {'dilute__settle_steps': 1},
      'export/model.json',
      False,
    ),
    # A polish that was stopped goes on as it began.
    (
      {'linearize__polish_steps': 9},
      {'linearize__inputs': ('token', 'mean')},
      'checkpoints/linearize/4',
      True,
    ),
    # The dense model that it is compared with is trained in the same way.
    ({}, {'dilute__settle_steps': 1}, 'checkpoints/baseline/9', True),
    ({}, {'select__num_layers': 4}, 'checkpoints/baseline/9', False),
    # Criterion `probe` dilutes.
    ({}, {'dilute__settle_steps': 1}, 'selection.json', False),
    (
      {'select__criterion': 'probe'},
      {'dilute__settle_steps': 1},
      'probe.part.json',
      True,
    ),
    # Criterion `output` fits maps.
    ({}, {'linearize__inputs': ('auto',)}, 'selection.json', False),
    (
      {'select__criterion': 'output'},
      {'linearize__inputs': ('auto',)},
      'selection.json',
      True,
    ),
    (
      {'select__criterion': 'output'},
      {'linearize__ridge': 1.0},
      'selection.json',
      False,
    ),
  ],
)
def test_what_a_result_was_made_from_depends_on_the_config(
  tmp_path, old, change, result, binds
):
  workdir_config.claim(tmp_path, values(**old))
  leave(tmp_path, result)
  today = values(**(old | change))
  if binds:
    with pytest.raises(UsageError, match='made with other values'):
      workdir_config.claim(tmp_path, today)
  else:
    workdir_config.claim(tmp_path, today)


def test_a_checkpoint_that_was_not_finished_binds_nothing(tmp_path):
  workdir_config.claim(tmp_path, values())
  (tmp_path / 'checkpoints/pretrain/3.orbax-checkpoint-tmp').mkdir(parents=True)
  workdir_config.claim(tmp_path, values(seed=5))
  assert saved(tmp_path)['seed'] == 5


def test_withdrawing_spares_what_anyone_has_written(tmp_path):
  workdir_config.claim(tmp_path, values())
  (tmp_path / 'metrics.jsonl').write_text('')
  workdir_config.withdraw(tmp_path)
  assert (tmp_path / 'config.json').exists()
  (tmp_path / 'metrics.jsonl').unlink()
  workdir_config.withdraw(tmp_path)
  assert not list(tmp_path.iterdir())


def test_every_key_of_the_config_binds_somewhere():
  """No section is forgotten: with every result there, all values bind."""
  config = values()
  for key in config_differences.differences({}, config):
    # With `export.hub`, the same files also go elsewhere.
    if not key.startswith('linearize.') and key != 'export.hub':
      assert workdir_config._readers(key, config), key
