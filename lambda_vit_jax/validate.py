"""Every value of a config, looked at before a run begins.

A value that only a late stage reads is refused before hours of training, and
before a workdir takes the config for its own. What needs the data set, the
weights or the devices is left to the stages.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from lambda_vit_jax import (
  criteria,
  exporter,
  linear,
  merge_plan,
  optim,
  resolve,
  selection_checks,
  surgery,
  task,
  tracing,
  trial_linear,
)
from lambda_vit_jax.data import sources
from lambda_vit_jax.data.augment import Augment
from lambda_vit_jax.errors import LambdaVitError, UsageError
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.module import abstract_params, make_module
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.train_step import LossSettings
from lambda_vit_jax.windows import Windowing

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
  resolve.method(config)
  warm = resolve.is_warm(config) and resolve.method(config) == 'dilute'
  _check_linearize(config['linearize'], warm, model.depth)
  export = config['export']
  exporter.check_settings(
    export['formats'],
    export['dtype'],
    export['zero_fill'],
    export['int8_arithmetic'],
  )
  resolve.benchmark_sizes(config['benchmark'])
  resolve.integer(config['benchmark']['rounds'], 'benchmark.rounds', 1)


def _check_run(config: Mapping[str, Any]) -> None:
  resolve.integer(config['seed'], 'seed')
  for key in (
    'batch_size',
    'log_every',
    'checkpoint_every',
    'keep_checkpoints',
  ):
    resolve.integer(config[key], key, least=1)
  if config['eval_every'] is not None:
    resolve.integer(config['eval_every'], 'eval_every')
  resolve.integer(config['mesh']['fsdp'], 'mesh.fsdp', least=1)
  tracing.window(config['profile'], epath.Path())


def _check_data(config: Mapping[str, Any]) -> None:
  data = config['data']
  resolve.optional_count(data['train_images'], 'data.train_images')
  resolve.integer(data['holdout_images'], 'data.holdout_images')
  if task.segments(config):
    sources.check_masks(data['source'])
  else:
    sources.check_source(data['source'])
    Augment.from_config(dict(data['augment']))


def _check_model(config: Mapping[str, Any]) -> Model:
  """The model by its sizes alone."""
  settings = config['model']
  size = resolve.image_size(settings['image_size'])
  variant = get_variant(settings['variant'])
  # Heads are as wide as the data set has classes; without one, the share of
  # multiply-accumulates that can go is the largest.
  module = make_module(variant, image_size=size, num_classes=0)
  resolve.compute_dtype(settings)
  resolve.crop_ratio(settings)
  rows, columns = module.grid_size
  merge_plan.merge_schedule(
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
    None if stride is None else resolve.integer(stride, 'segment.stride'),
    model.module.image_size if _size_is_known(config) else (_MANY, _MANY),
  )
  resolve.integer(settings['pictures'], 'segment.pictures')
  number = settings['num_classes']
  # What the data set says is for the stage.
  task.segment_recipe(
    settings,
    1 if number is None else resolve.integer(number, 'segment.num_classes'),
  )


def _check_training(
  settings: Mapping[str, Any], stage: str, durations: tuple[str, ...]
) -> None:
  for key in durations:
    # How many steps an epoch has is not known yet, only the form.
    resolve.duration(settings[key], 1, f'{stage}.{key}')
  resolve.number(settings['learning_rate'], f'{stage}.learning_rate')
  resolve.integer(
    settings['accumulate_steps'], f'{stage}.accumulate_steps', least=1
  )
  LossSettings(distill=settings['distill'])
  optim.check_schedule(settings['schedule'])
  optim.check_pattern(settings['frozen'], stage)


def _check_select(config: Mapping[str, Any], model: Model) -> None:
  settings = config['select']
  for section in ('analyze', 'select'):
    resolve.optional_count(
      config[section]['num_images'], f'{section}.num_images'
    )
  if settings['memory_gib'] is not None:
    resolve.number(settings['memory_gib'], 'select.memory_gib')
  selection_checks.check_names(settings['target'], settings['sign'])
  resolve.probe_steps(settings)
  key, value = resolve.budget(settings)
  name = settings['criterion']
  if name != 'probe':
    name, _ = criteria.check_criterion(name)
  trial_linear.check_trial(settings['trial'], settings['criterion'])
  # What the weights' own size decides is for the stage.
  if key != 'target_speedup' or name == 'given' or _size_is_known(config):
    size = int(value) if key == 'num_layers' else value
    selection_checks.check_budget(
      model, name, tuple(settings['layers']), **{key: size}
    )


def _check_linearize(
  settings: Mapping[str, Any], warm: bool, depth: int
) -> None:
  resolve.optional_count(settings['num_images'], 'linearize.num_images')
  if settings['rank'] is not None:
    resolve.integer(settings['rank'], 'linearize.rank', 1)
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
  linear.check_ridge(settings['ridge'])
  surgery.check_linear_inputs(settings['inputs'])
  _check_dropped(settings, warm, depth)


def _check_dropped(settings: Mapping[str, Any], warm: bool, depth: int) -> None:
  key = 'linearize.num_drop_blocks'
  number = resolve.integer(settings['num_drop_blocks'], key)
  try:
    blocks = surgery.check_layers(settings['drop_blocks'], depth)
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
