"""Every value of a config, looked at before a run begins.

A value that only a late stage reads is refused before hours of training, and
before a workdir takes the config for its own. What needs the data set, the
weights or the devices is left to the stages.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from lambda_vit_jax.cli import config_values, task
from lambda_vit_jax.core.errors import LambdaVitError, UsageError
from lambda_vit_jax.data.augment import Augment
from lambda_vit_jax.data.sources import registry
from lambda_vit_jax.evaluation.sliding_windows import Windowing
from lambda_vit_jax.exporters import export as export_lib
from lambda_vit_jax.models import merge_schedule, modes
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.selection import checks, criteria, linear_trials
from lambda_vit_jax.training import optim, tracing
from lambda_vit_jax.training.step import LossSettings
from lambda_vit_jax.training_free import least_squares

# More patches than any merging takes away, where they are not known yet.
_MANY = 1 << 30


def check(config: Mapping[str, Any]) -> None:
  """Refuses a config with a value that some stage would refuse.

  Args:
    config: all sections, as `configs/common.py` has them.

  Raises:
    UsageError: names the key.
    ModelError: sizes, layers or a merging that no such model has.
  """
  _check_run(config)
  _check_data(config)
  model = _check_model(config)
  if task.segments(config):
    _check_segment(config, model)
  for stage, keys in (
    ('pretrain', ('steps', 'warmup_steps')),
    ('dilute', ('dilution_steps', 'settle_steps', 'warmup_steps')),
  ):
    _check_training(config[stage], stage, keys)
  _check_select(config, model)
  config_values.method(config)
  warm = (
    config_values.is_warm(config) and config_values.method(config) == 'dilute'
  )
  _check_linearize(config['linearize'], warm, model.depth)
  export = config['export']
  export_lib.check_settings(
    export['formats'],
    export['dtype'],
    export['zero_fill'],
    export['int8_arithmetic'],
  )
  config_values.benchmark_sizes(config['benchmark'])
  config_values.integer(config['benchmark']['rounds'], 'benchmark.rounds', 1)


def _check_run(config: Mapping[str, Any]) -> None:
  config_values.integer(config['seed'], 'seed')
  for key in (
    'batch_size',
    'log_every',
    'checkpoint_every',
    'keep_checkpoints',
  ):
    config_values.integer(config[key], key, least=1)
  if config['eval_every'] is not None:
    config_values.integer(config['eval_every'], 'eval_every')
  config_values.integer(config['mesh']['fsdp'], 'mesh.fsdp', least=1)
  tracing.window(config['profile'], epath.Path())


def _check_data(config: Mapping[str, Any]) -> None:
  data = config['data']
  config_values.optional_count(data['train_images'], 'data.train_images')
  config_values.integer(data['holdout_images'], 'data.holdout_images')
  if task.segments(config):
    registry.check_masks(data['source'])
  else:
    registry.check_source(data['source'])
    Augment.from_config(dict(data['augment']))


def _check_model(config: Mapping[str, Any]) -> Model:
  """The model by its sizes alone."""
  settings = config['model']
  size = config_values.image_size(settings['image_size'])
  variant = get_variant(settings['variant'])
  # Heads are as wide as the data set has classes; without one, the share of
  # multiply-accumulates that can go is the largest.
  module = make_module(variant, image_size=size, num_classes=0)
  config_values.compute_dtype(settings)
  config_values.crop_ratio(settings)
  rows, columns = module.grid_size
  merge_schedule.merge_schedule(
    settings['merge'],
    module.depth,
    rows * columns if _size_is_known(config) else _MANY,
    settings['merge_start'],
  )
  return Model(
    module,
    # What the search for a number of layers prunes.
    abstract_params(module)
    if config['select']['target_speedup'] is not None
    else {},
    variant.name,
    variant.preprocessing(module.image_size),
  )


def _size_is_known(config: Mapping[str, Any]) -> bool:
  """Whether images cannot have the size of the `init` weights."""
  return not config['init'] or config['model']['image_size'] is not None


def _check_segment(config: Mapping[str, Any], model: Model) -> None:
  settings = config['segment']
  task.decoder(config, model.depth).check_depth(model.depth)
  stride = settings['stride']
  Windowing.of(
    settings['evaluation'],
    None if stride is None else config_values.integer(stride, 'segment.stride'),
    model.module.image_size if _size_is_known(config) else (_MANY, _MANY),
  )
  config_values.integer(settings['pictures'], 'segment.pictures')
  number = settings['num_classes']
  # What the data set says is for the stage.
  task.segment_recipe(
    settings,
    1
    if number is None
    else config_values.integer(number, 'segment.num_classes'),
  )


def _check_training(
  settings: Mapping[str, Any], stage: str, durations: tuple[str, ...]
) -> None:
  for key in durations:
    # How many steps an epoch has is not known yet, only the form.
    config_values.duration(settings[key], 1, f'{stage}.{key}')
  config_values.number(settings['learning_rate'], f'{stage}.learning_rate')
  config_values.integer(
    settings['accumulate_steps'], f'{stage}.accumulate_steps', least=1
  )
  LossSettings(distill=settings['distill'])
  optim.check_schedule(settings['schedule'])
  optim.check_pattern(settings['frozen'], stage)


def _check_select(config: Mapping[str, Any], model: Model) -> None:
  settings = config['select']
  for section in ('analyze', 'select'):
    config_values.optional_count(
      config[section]['num_images'], f'{section}.num_images'
    )
  if settings['memory_gib'] is not None:
    config_values.number(settings['memory_gib'], 'select.memory_gib')
  checks.check_names(settings['target'], settings['sign'])
  config_values.probe_steps(settings)
  key, value = config_values.budget(settings)
  name = settings['criterion']
  if name != 'probe':
    name, _ = criteria.check_criterion(name)
  linear_trials.check_trial(settings['trial'], settings['criterion'])
  # What the weights' own size decides is for the stage.
  if key != 'target_speedup' or name == 'given' or _size_is_known(config):
    size = int(value) if key == 'num_layers' else value
    checks.check_budget(model, name, tuple(settings['layers']), **{key: size})


def _check_linearize(
  settings: Mapping[str, Any], warm: bool, depth: int
) -> None:
  config_values.optional_count(settings['num_images'], 'linearize.num_images')
  if settings['rank'] is not None:
    config_values.integer(settings['rank'], 'linearize.rank', 1)
  for name in ('sequential', 'recentre', 'refit', 'maps'):
    if not isinstance(settings[name], bool):
      raise UsageError(
        f'config.linearize.{name}={settings[name]!r}: give True or False'
      )
  if warm and not settings['maps']:
    raise UsageError(
      'config.linearize.maps=False leaves a warm start without maps; leave it '
      'True, or config.dilute.start=attention'
    )
  least_squares.check_ridge(settings['ridge'])
  modes.check_linear_inputs(settings['inputs'])
  _check_dropped(settings, warm, depth)


def _check_dropped(settings: Mapping[str, Any], warm: bool, depth: int) -> None:
  key = 'linearize.num_drop_blocks'
  number = config_values.integer(settings['num_drop_blocks'], key)
  try:
    blocks = modes.check_layers(settings['drop_blocks'], depth)
  except LambdaVitError as error:
    raise UsageError(f'config.linearize.drop_blocks: {error}') from None
  if number and blocks:
    raise UsageError(
      f'config.{key}={number} and config.linearize.drop_blocks={blocks}: give '
      'one of the two'
    )
  if warm and (number or blocks):
    raise UsageError(
      f'config.{"linearize.drop_blocks" if blocks else key}: a warm start has '
      'all its blocks; set config.method=linearize, or '
      'config.dilute.start=attention'
    )
  if number >= depth:
    raise UsageError(
      f'config.{key}={number}: the network has {depth} blocks and must keep one'
    )
