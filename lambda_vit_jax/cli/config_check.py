"""Check settings against the model and against the names each package knows.

A value that only a late stage reads is refused before hours of training, and
before a workdir takes the config as its own. What depends on the data set, the
weights or the devices is left to the stages.
"""

import contextlib
from collections.abc import Iterator

from etils import epath

from lambda_vit_jax.checkpoints import hub
from lambda_vit_jax.cli import task
from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.cli.training_free_settings import Linearize
from lambda_vit_jax.compression import costs, steps
from lambda_vit_jax.core.errors import LambdaVitError, UsageError
from lambda_vit_jax.data.augment import Augment
from lambda_vit_jax.data.sources import registry
from lambda_vit_jax.evaluation.sliding_windows import Windowing
from lambda_vit_jax.exporters import export, runtimes
from lambda_vit_jax.models import map_inputs, merge_schedule, modes
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.selection import checks, criteria
from lambda_vit_jax.training import optim, tracing
from lambda_vit_jax.training.step import LossSettings
from lambda_vit_jax.training_free import input_choice, least_squares

# More patches than any merging takes away, where their number is not known.
_MANY = 1 << 30


def check(settings: Settings) -> None:
  """Refuses settings that some stage would refuse.

  Raises:
    UsageError: names the key.
  """
  tracing.window(settings.profile, epath.Path())
  if settings.segments:
    registry.check_masks(settings.data.source)
  else:
    registry.check_source(settings.data.source)
  # Also where masks have augmentations of their own: never in vain.
  with _named('data.augment'):
    Augment.from_config(dict(settings.data.augment))
  model = _check_model(settings)
  if settings.segments:
    _check_segment(settings, model)
  for stage in ('pretrain', 'dilute'):
    training = settings.training(stage)
    with _named(f'{stage}.distill'):
      LossSettings(distill=training.distill)
    with _named(f'{stage}.schedule'):
      optim.check_schedule(training.schedule)
    optim.check_frozen(training.frozen, stage)
  _check_select(settings, model)
  _check_linearize(settings.linearize, model.depth)
  _check_compress(settings, model)
  _check_streams(settings, model)
  _check_export(settings)
  runtimes.check_names(settings.benchmark.runtimes, 'config.benchmark.runtimes')
  if settings.export.hub:
    with _named('export.hub'):
      hub.check_repository(settings.export.hub)


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
  """Turns what a package says of a value into an error of the command line.

  Raises:
    UsageError: names the key, whatever the package knows of keys.
  """
  try:
    yield
  except LambdaVitError as error:
    line, (section, _, _) = str(error), key.partition('.')
    named = f'{section}.' in line
    raise UsageError(line if named else f'config.{key}: {line}') from None


def _check_model(settings: Settings) -> Model:
  """Returns the model by its sizes alone."""
  with _named('model.variant'):
    variant = get_variant(settings.model.variant)
  # The data set decides how wide the head is; without a head, the share of
  # multiply-accumulates that can go is the largest.
  with _named('model.image_size'):
    module = make_module(
      variant, image_size=settings.model.image_size, num_classes=0
    )
  _check_inputs(settings, module, merges=any(_merging(settings, module)))
  # Searches for a speed-up prune the parameters' shapes.
  searches = (
    settings.select.target_speedup is not None
    or 'compress' in settings.fitted_stages
  )
  params = abstract_params(module) if searches else {}
  preprocessing = variant.preprocessing(module.image_size)
  return Model(module, params, variant.name, preprocessing)


def _check_inputs(settings: Settings, module: ViT, merges: bool) -> None:
  """Checks what maps are made of, where some stage fits them."""
  inputs = settings.linearize.inputs
  chosen = input_choice.auto_budget(inputs) is not None
  dilutes = settings.method == 'dilute'
  leads = dilutes and (
    settings.dilute.is_warm or settings.dilute.stand_in == 'linearize'
  )
  maps = settings.linearize.maps and _removes(settings)
  stays = maps and (settings.method == 'linearize' or leads)
  tried = settings.select.criterion == 'output' and (
    'compress' not in settings.fitted_stages
  )
  with _named('linearize.inputs'):
    if stays and merges and chosen:
      raise UsageError(
        'auto may choose inputs that need every patch in its place, and with '
        'model.merge tokens merge; name token, mean or class_map'
      )
    if stays and merges:
      map_inputs.check_unmerged(inputs)
    if (stays or tried) and not chosen:
      map_inputs.check_class(inputs, module.class_token)
      if _size_is_known(settings):
        map_inputs.check_grid(inputs, module.grid_size)


def _removes(settings: Settings) -> bool:
  """Returns whether attention layers are chosen, that a map could replace."""
  select = settings.select
  given = select.criterion == 'given'
  return bool(select.layers) if given else select.num_layers != 0


def _size_is_known(settings: Settings) -> bool:
  """Returns whether `init` weights cannot change the image size."""
  return not settings.init or settings.model.image_size is not None


def _check_segment(settings: Settings, model: Model) -> None:
  segment = settings.segment
  task.decoder(segment, model.depth).check_depth(model.depth)
  Windowing.of(
    segment.evaluation,
    segment.stride,
    model.module.image_size if _size_is_known(settings) else (_MANY, _MANY),
  )
  # The stage asks the data set where the config has no number of classes.
  task.segment_recipe(
    segment, 1 if segment.num_classes is None else segment.num_classes
  )


def _check_select(settings: Settings, model: Model) -> None:
  select = settings.select
  name = select.criterion
  if name != 'probe':
    name, _ = criteria.check_criterion(name)
  checks.check_names(select.target, select.sign, select.trial, select.criterion)
  if 'compress' in settings.fitted_stages:
    # No stage selects layers.
    return
  # What depends on the weights' own size is left to the stage.
  if (
    select.target_speedup is None or name == 'given' or _size_is_known(settings)
  ):
    (key,) = select.budget
    with _named(f'select.{key}'):
      checks.check_budget(model, name, select.layers, **select.budget)


def _check_compress(settings: Settings, model: Model) -> None:
  with _named('compress.inputs'):
    options = task.compress_options(settings).checked(model)
    map_inputs.check_linear_inputs(options.inputs or ('token',))
  if 'compress' not in settings.fitted_stages:
    return
  if settings.segments and 'blocks' in options.parts:
    raise UsageError(
      'config.compress.parts: a decoder reads the outputs of blocks; with '
      'task=segment leave `blocks` out'
    )
  if 'tokens' in options.parts:
    _check_tokens(settings, model)
  if _size_is_known(settings):
    with _named('compress.inputs'):
      map_inputs.check_grid(options.inputs or (), model.module.grid_size)
    if options.cost == 'macs':
      steps.check_reach(model, model, options, costs.macs)


def _merging(settings: Settings, module: ViT) -> tuple[int, ...]:
  """Returns how many tokens each block of the finished network merges."""
  rows, columns = module.grid_size
  with _named('model'):
    return merge_schedule.merge_schedule(
      settings.model.merge,
      module.depth,
      rows * columns if _size_is_known(settings) else _MANY,
      settings.model.merge_start,
    )


def _check_tokens(settings: Settings, model: Model) -> None:
  if any(_merging(settings, model.module)):
    raise UsageError(
      'config.model.merge: the part tokens of config.compress.parts decides how '
      'many merge; give one of the two'
    )


def _check_streams(settings: Settings, model: Model) -> None:
  if settings.method != 'dilute' or settings.dilute.distill != 'streams':
    return
  searches = 'compress' in settings.fitted_stages
  if searches and 'tokens' in task.compress_options(settings).parts:
    key = 'compress.parts'
  elif any(_merging(settings, model.module)):
    key = 'model.merge'
  else:
    return
  raise UsageError(
    'config.dilute.distill=streams compares tokens one by one, and '
    f'config.{key} lets some merge; use soft or feature'
  )


def _check_export(settings: Settings) -> None:
  chosen = settings.export
  export.check_settings(**chosen.options)
  # None is once an epoch.
  scored = settings.eval_every != 0 and settings.data.holdout_images
  if chosen.checkpoint == 'best' and settings.method == 'dilute' and not scored:
    raise UsageError(
      'config.export.checkpoint=best: no checkpoint is scored with '
      'config.eval_every=0 or config.data.holdout_images=0; set both, or '
      'config.export.checkpoint=last'
    )
  leads = settings.method == 'dilute' and settings.dilute.towards == 'linear'
  maps = settings.linearize.maps and (leads or settings.method == 'linearize')
  zeros = chosen.zero_fill or 'transformers' in chosen.formats
  if maps and _removes(settings) and zeros:
    raise UsageError(
      'config.export: a linear map takes the place of attention, which no stock '
      'attention can stand for; export without zero_fill and transformers, or '
      'set linearize.maps=False'
    )


def _check_linearize(settings: Linearize, depth: int) -> None:
  least_squares.check_ridge(settings.ridge)
  if input_choice.auto_budget(settings.inputs) is None:
    with _named('linearize.inputs'):
      map_inputs.check_linear_inputs(settings.inputs)
  with _named('linearize.drop_blocks'):
    modes.check_layers(settings.drop_blocks, depth)
  number = settings.num_drop_blocks
  if number >= depth:
    raise UsageError(
      f'config.linearize.num_drop_blocks={number}: the network has {depth} '
      'blocks and must keep one'
    )
