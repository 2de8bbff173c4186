"""A config that some stage would refuse is refused before anything is done."""

import copy
import json

import pytest
from lambda_vit_jax.configs import common, digits

from lambda_vit_jax import main
from lambda_vit_jax.cli import config_check
from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.core.errors import LambdaVitError, UsageError
from lambda_vit_jax.models.map_inputs import LINEAR_INPUTS
from tests.support.stage_runs import ROOT, arguments

BASE = digits.get_config().to_dict()

WRONG = [
  ('select.num_layers', 3.5, 'select.num_layers=3.5 is not a whole number'),
  ('select.num_layers', -1, 'select.num_layers=-1 must be at least 0'),
  ('select.num_layers', 12, 'one must stay'),
  ('select.removal_ratio', 0.5, 'num_layers and removal_ratio set'),
  ('select.criterion', 'noise', "select.criterion='noise' is not known"),
  ('select.criterion', 'given', 'needs select.layers'),
  ('select.criterion', 'random:x', 'only exhaustive takes a score'),
  ('select.target', 'pixels', "select.target='pixels' is not known"),
  ('select.sign', 'minus', "select.sign='minus' is not known"),
  ('select.trial', 'map', "select.trial='map' is not known"),
  ('select.num_images', 'many', 'select.num_images'),
  ('select.num_images', 1, 'select.num_images=1 must be at least 2'),
  ('select.probe_steps', 1, 'select.probe_steps'),
  ('select.memory_gib', 'much', 'select.memory_gib'),
  ('analyze.num_images', 0, 'analyze.num_images'),
  ('dilute.dilution_steps', '3 epochs', 'dilute.dilution_steps'),
  ('dilute.settle_steps', -1, 'dilute.settle_steps'),
  ('dilute.warmup_steps', 'ep', 'dilute.warmup_steps'),
  ('dilute.distill', 'warm', "distill='warm' is not known"),
  ('dilute.start', 'maps', 'config.dilute.start'),
  ('dilute.frozen', '(', 'config.dilute.frozen'),
  ('dilute.schedule', 'line', "schedule='line' is not known"),
  ('dilute.accumulate_steps', 0, 'config.dilute.accumulate_steps'),
  ('dilute.accumulate_steps', 451, 'would end before the first update'),
  ('method', 'prune', 'config.method'),
  ('linearize.num_images', 0, 'linearize.num_images'),
  ('linearize.ridge', -1, 'ridge=-1'),
  ('linearize.rank', 0, 'linearize.rank'),
  ('linearize.inputs', ('mean',), 'add token'),
  ('linearize.inputs', ('auto:7',), 'auto:0 to auto:1'),
  ('linearize.inputs', ('tokn',), "config.linearize.inputs: unknown input 'to"),
  (
    'compress.inputs',
    ('tokn',),
    "config.compress.inputs: unknown input 'tokn'",
  ),
  ('compress.inputs', ('mean',), 'add token'),
  ('compress.parts', ('heads',), "'heads' is not known"),
  ('compress.criterion', 'loss', 'compress.criterion'),
  ('compress.cost', 'flops', 'compress.cost'),
  ('compress.rescore', 'some', 'compress.rescore'),
  ('linearize.target', 'steam', 'config.linearize.target'),
  ('linearize.num_drop_blocks', -1, 'linearize.num_drop_blocks'),
  ('linearize.num_drop_blocks', 99, 'must keep one'),
  ('linearize.drop_blocks', (99,), 'out of range'),
  ('linearize.drop_blocks', None, 'config.linearize.drop_blocks: '),
  ('linearize.drop_blocks', 3, 'config.linearize.drop_blocks: '),
  ('linearize.drop_blocks', '8', 'config.linearize.drop_blocks: '),
  ('export.dtype', 'float8', "export.dtype='float8'"),
  ('export.hub', 'a/b/c', 'config.export.hub: a/b/c: not a repository'),
  ('export.formats', ('orbax', 'tflite'), "unknown format 'tflite'"),
  ('export.int8_arithmetic', 'fast', 'export.int8_arithmetic'),
  ('benchmark.batch_sizes', 'all', 'benchmark.batch_sizes'),
  ('benchmark.rounds', 0, 'benchmark.rounds'),
  ('model.merge', 'half', "merge='half'"),
  ('model.merge_start', 99, 'merge_start=99'),
  ('model.image_size', 'big', 'model.image_size'),
  ('model.crop_ratio', 2, 'model.crop_ratio'),
  ('model.dtype', 'int8', 'model.dtype'),
  ('model.variant', 'vit_none', 'unknown model variant'),
  ('data.source', 'folder', 'data.source'),
  ('data.augment.kind', 'strong', 'data.augment.kind'),
  ('profile', '5', 'config.profile'),
]


def check(config):
  config_check.check(Settings.from_config(config))


def changed(key, value):
  config = copy.deepcopy(BASE)
  section = config
  *path, last = key.split('.')
  for name in path:
    section = section[name]
  section[last] = value
  return config


@pytest.mark.parametrize('key, value, message', WRONG)
def test_a_wrong_value_is_refused_at_once(key, value, message):
  with pytest.raises(UsageError) as caught:
    check(changed(key, value))
  assert message in str(caught.value)
  assert key.split('.')[-1] in str(caught.value)


@pytest.mark.parametrize(
  'key, value',
  [
    ('select.criterion', 'probe'),
    ('select.criterion', 'nose'),
    ('select.criterion', 'exhaustive:nose'),
    ('select.criterion', 'exhaustive:loss_increase'),
    ('model.merge', 'decreasing:1'),
    ('export.dtype', 'int8'),
    ('linearize.ridge', 0.1),
    ('linearize.inputs', LINEAR_INPUTS),
    ('linearize.inputs', ('auto:0.25',)),
    ('linearize.target', 'attention'),
    ('select.criterion', 'output'),
    ('benchmark.batch_sizes', 4),
    ('dilute.dilution_steps', '3ep'),
  ],
)
def test_a_right_value_passes(key, value):
  check(changed(key, value))


@pytest.mark.parametrize('key', ['eval_every', 'data.holdout_images'], ids=str)
def test_the_best_checkpoint_needs_scores(key):
  config = changed(key, 0)
  check(config)
  config['export']['checkpoint'] = 'best'
  with pytest.raises(UsageError, match='checkpoint=best: no checkpoint is'):
    check(config)
  # Which trains nothing that could be chosen from.
  config['method'] = 'linearize'
  check(config)


def test_a_key_of_the_other_task_is_checked_too():
  config = changed('data.augment.kind', 'strong')
  config['task'] = 'segment'
  with pytest.raises(UsageError, match=r'data\.augment\.kind'):
    check(config)


def test_maps_for_which_merged_tokens_have_no_place_are_refused_at_once():
  config = changed('linearize.inputs', ('token', 'mixing'))
  config['model']['merge'] = '2'
  check(config)
  config['method'] = 'linearize'
  with pytest.raises(LambdaVitError, match='maps of mixing need every patch'):
    check(config)
  config['linearize']['inputs'] = ('token', 'mean')
  check(config)


@pytest.mark.parametrize(
  'section, key, value',
  [('export', 'formats', ('transformers',)), ('export', 'zero_fill', True)],
)
def test_maps_that_stock_classes_lack_are_refused_at_once(section, key, value):
  config = changed('select.num_layers', 5)
  config[section][key] = value
  check(config)
  config['method'] = 'linearize'
  with pytest.raises(UsageError, match='a linear map takes the place'):
    check(config)
  config['linearize']['maps'] = False
  check(config)
  config |= {'method': 'dilute'}
  config['linearize']['maps'] = True
  config['dilute']['towards'] = 'linear'
  with pytest.raises(UsageError, match='a linear map takes the place'):
    check(config)


def test_grids_without_neighbours_are_refused_at_once():
  config = changed('linearize.inputs', ('token', 'neighbours'))
  config['model']['image_size'] = 4
  check(config)
  config['method'] = 'linearize'
  with pytest.raises(
    LambdaVitError, match='too small for the input neighbours'
  ):
    check(config)
  config['linearize']['inputs'] = ('auto',)
  check(config)


def test_inputs_of_trials_are_checked_before_a_search():
  """Criterion `output` fits maps whatever comes after it."""
  config = changed('linearize.inputs', ('token', 'neighbours'))
  config['model']['image_size'] = 4
  config['select']['criterion'] = 'output'
  with pytest.raises(
    LambdaVitError, match='too small for the input neighbours'
  ):
    check(config)


def test_a_map_of_the_class_token_needs_one():
  config = changed('linearize.inputs', ('token', 'class_map'))
  config['method'] = 'linearize'
  check(config)
  config['model']['variant'] = 'vit_base_patch16_siglip_224'
  with pytest.raises(LambdaVitError, match='has no class token'):
    check(config)


@pytest.mark.parametrize(
  'inputs, message',
  [
    (('auto',), 'auto may choose inputs that need every patch'),
    (('token', 'mixing'), 'need every patch in its place'),
  ],
)
@pytest.mark.parametrize('method', ['linearize', 'dilute'])
def test_merged_tokens_and_maps_of_patches(inputs, message, method):
  config = changed('linearize.inputs', inputs)
  config['model']['merge'] = 2
  config['method'] = method
  config['dilute']['towards'] = 'linear'
  with pytest.raises(LambdaVitError, match=message):
    check(config)
  config['linearize']['inputs'] = ('token', 'mean', 'class_map')
  check(config)


def test_the_defaults_pass():
  check(common.base().to_dict())


@pytest.mark.parametrize(
  'key, value',
  [
    ('decoder', 'unet'),
    ('blocks', (0, 1, 2, 99)),
    ('evaluation', 'tiles'),
    ('stride', 'wide'),
    ('pictures', 'few'),
    ('num_classes', 0),
    ('num_classes', 10**9),
    ('scale', (2.0, 0.5)),
    ('most_of_one', 75),
    ('flip', 'often'),
    ('photometric', -1.0),
  ],
)
def test_a_wrong_value_of_a_segmentation(key, value):
  config = changed('task', 'segment')
  check(config)
  config['segment'][key] = value
  with pytest.raises(LambdaVitError):
    check(config)


def test_a_speedup_is_held_against_the_network():
  config = changed('select.target_speedup', 50)
  config['select']['num_layers'] = None
  config['init'] = ''
  with pytest.raises(UsageError, match='out of reach'):
    check(config)
  # What the weights' own size decides is left to the stage.
  config['init'] = 'somewhere'
  check(config)
  config['select']['target_speedup'] = 1.01
  config['init'] = ''
  check(config)


def test_streams_of_merged_tokens_are_not_distilled():
  config = changed('model.merge', 2)
  check(config)
  config['dilute']['distill'] = 'streams'
  with pytest.raises(UsageError, match=r'config\.model\.merge lets some merge'):
    check(config)
  config['model']['merge'] = 0
  check(config)


def test_a_budget_of_layers_that_no_stage_selects_is_not_held_against_it():
  config = changed('select.num_layers', 99)
  with pytest.raises(UsageError, match='num_layers'):
    check(config)
  config['method'] = 'compress'
  check(config)


def test_a_value_of_a_late_stage_costs_nothing_and_locks_nothing(
  tmp_path, capsys
):
  where = tmp_path / 'run'
  argv = arguments('run', where, '--config.select.num_layers=3.5')
  assert main.main(argv) == 2
  assert 'select.num_layers=3.5' in capsys.readouterr().err
  assert not where.exists()


def test_a_command_that_fails_at_once_leaves_no_config(tmp_path, capsys):
  where = tmp_path / 'run'
  assert main.main(arguments('dilute', where)) == 1
  assert 'run the stage' in capsys.readouterr().err
  assert not list(where.iterdir())
  # A config that was there stays.
  where.joinpath('config.json').write_text(json.dumps(BASE))
  assert main.main(arguments('dilute', where)) == 1
  assert where.joinpath('config.json').exists()


def test_layers_that_would_go_without_training(tmp_path, capsys):
  config = copy.deepcopy(BASE)
  config['dilute'] |= {'dilution_steps': 0, 'settle_steps': 0}
  with pytest.raises(UsageError, match=r'or config\.method=linearize'):
    Settings.from_config(config)
  config['method'] = 'linearize'
  Settings.from_config(config)
  # Of a network that is pruned already.
  config |= {'method': 'dilute'}
  config['select']['num_layers'] = 0
  Settings.from_config(config)


@pytest.mark.parametrize(
  'text, value',
  [('scratch', True), ('scratch=no', False), ('scratch=True', True)],
)
def test_switches_of_a_config_file(text, value):
  assert common.parse_argument(text, scratch=not value) == {'scratch': value}


@pytest.mark.parametrize(
  'text, message',
  [
    ('scratch=maybe', "scratch='maybe': give true or false"),
    ('layers=few', "layers='few': give a value as 5"),
    ('other', "'other' is not known; known: layers, scratch"),
  ],
)
def test_arguments_that_a_config_file_does_not_take(text, message):
  with pytest.raises(ValueError, match=message):
    common.parse_argument(text, scratch=False, layers=5)


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--config.batch_size=1.5', '--config.batch_size=1.5: is not a whole numb'),
    ('--config.batch_size=True', 'is not a whole number'),
    ('--config.seed=None', 'is not a whole number'),
    ('--config.pretrain.b1=x', '--config.pretrain.b1=x: is not a number'),
    ('--config.data.skip_undecodable=5x', 'give True or False'),
    ('--config=configs', '--config=configs: is no file'),
    ('--config=', '--config=: is no file'),
    ('--config=README.md', 'README.md: '),
  ],
)
def test_flags_in_our_words(flag, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  argv = arguments('pretrain', tmp_path)
  argv = [
    a for a in argv if not flag.startswith('--config=') or a[:9] != flag[:9]
  ]
  assert main.main([*argv, flag]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert message in error
  assert 'literal' not in error or 'README' in flag
