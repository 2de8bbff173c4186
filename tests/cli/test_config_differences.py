"""Two configs differ where a result could change."""

from lambda_vit_jax.cli import config_differences


def test_differing_keys_ignore_what_changes_no_result():
  saved = {'seed': 0, 'log_every': 5, 'select': {'layers': [1, 2]}}
  same = {'seed': 0, 'log_every': 9, 'select': {'layers': (1, 2)}}
  assert list(config_differences.differences(saved, same)) == []
  other = {'seed': 1, 'log_every': 5, 'select': {'layers': ()}, 'new': 1}
  assert list(config_differences.differences(saved, other)) == [
    'new',
    'seed',
    'select.layers',
  ]


def test_the_best_checkpoint_depends_on_which_there_are():
  saved = {'export': {'checkpoint': 'best'}, 'eval_every': 5, 'log_every': 5}
  other = saved | {'eval_every': 2, 'log_every': 1}
  assert list(config_differences.differences(saved, other)) == ['eval_every']
  last = {'export': {'checkpoint': 'last'}}
  assert not config_differences.differences(saved | last, other | last)


def test_a_key_that_an_earlier_version_lacked_had_its_default():
  saved = {'seed': 0, 'model': {'variant': 'a'}, 'gone': 1}
  defaults = {'seed': 5, 'model': {'variant': '', 'merge': 0}, 'other': 2}
  today = {'seed': 0, 'model': {'variant': 'a', 'merge': 0}}
  assert list(config_differences.differences(saved, today, defaults)) == [
    'gone'
  ]
  today['model']['merge'] = 8
  assert list(config_differences.differences(saved, today, defaults)) == [
    'gone',
    'model.merge',
  ]


def test_earlier_versions_polished_on_whole_images():
  defaults = {'linearize': {'polish_steps': 0, 'polish_crop_area': 0.5}}
  for steps, names in ((0, []), (300, ['linearize.polish_crop_area'])):
    saved = {'linearize': {'polish_steps': steps}}
    today = {'linearize': {'polish_steps': steps, 'polish_crop_area': 0.5}}
    found = config_differences.differences(saved, today, defaults)
    assert list(found) == names
    today['linearize']['polish_crop_area'] = 1.0
    found = config_differences.differences(saved, today, defaults)
    assert bool(found) == (not steps)


def test_a_value_is_short_and_printable():
  """Both values of a file that somebody else has written."""
  saved = {'a': 'x' * 5000, 'b': '\x1b[2J\n'}
  found = config_differences.differences(saved, {'a': 1, 'b': 2})
  assert len(found['a']) < 100
  assert all(text.isprintable() for text in found.values())
