"""From settings to a training job; shared by `pretrain` and `dilute`."""

import dataclasses
import functools
from collections.abc import Callable

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.cli import workdir
from lambda_vit_jax.cli.settings import Training
from lambda_vit_jax.cli.stages import evaluate_masks
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.models.build import drop_path_rates
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training import loop, optim, persistence, tracing
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Job, Phase
from lambda_vit_jax.training.step import LossSettings


def training_job(
  run: Run,
  stage: str,
  model: Model,
  phases: tuple[Phase, ...],
  plan: Dilution,
  teacher: Model | None,
) -> Job:
  """Returns the job that the config section named like the stage asks for."""
  settings = run.settings.training(stage)
  schedule = _schedule(run, settings, phases[-1].until)
  optim.check_frozen(settings.frozen, stage, model.params)
  teacher = _teacher(settings, stage, teacher)
  shape = get_variant(model.variant).drop_path_shape
  rates = drop_path_rates(settings.drop_path_rate, model.depth, shape)
  return Job(
    stage=stage,
    phases=tuple(
      dataclasses.replace(
        phase, module=phase.module.clone(drop_path_rates=rates)
      )
      for phase in phases
    ),
    optimizer=optim.make_optimizer(
      dataclasses.asdict(settings), schedule, model.depth
    ),
    learning_rate=schedule,
    loss=_loss(settings),
    dilution=plan,
    seed=run.settings.seed,
    steps_per_epoch=run.steps_per_epoch,
    make_batches=functools.partial(run.train_batches, model.preprocessing),
    teacher=(teacher.module, teacher.params) if teacher else None,
    batch_size=run.batch_size,
    description=describe(model),
    log_every=run.settings.log_every,
    checkpoint_every=run.settings.checkpoint_every,
    evaluate=functools.partial(_evaluate_holdout, run, model.preprocessing),
    eval_every=_eval_every(run),
    # Not looked for where the workdir has its own: it may be gone by then.
    start=None
    if workdir.finished_step(run.workdir, stage) is not None
    else persistence.find(run.settings.resume_from, stage),
    window=tracing.window(run.settings.profile, run.path('profile')),
  )


def _schedule(
  run: Run, settings: Training, total: int
) -> Callable[[Array | int], Array]:
  warmup = settings.warmup_steps.steps(run.steps_per_epoch)
  return optim.learning_rate_schedule(
    settings.peak_learning_rate(run.batch_size),
    # Without steps nothing is trained, whatever the warm-up.
    total or warmup + 1,
    warmup,
    settings.final_learning_rate,
    settings.schedule,
    settings.poly_power,
  )


def _teacher(
  settings: Training, stage: str, dense: Model | None
) -> Model | None:
  if settings.distill == 'none':
    return None
  if dense is None:
    raise UsageError(
      f'config.{stage}.distill={settings.distill!r}: this stage has no '
      'teacher; only `dilute` has one, the dense model'
    )
  return dense


def _loss(settings: Training) -> LossSettings:
  return LossSettings(
    label_smoothing=settings.label_smoothing,
    mixup_alpha=settings.mixup,
    cutmix_alpha=settings.cutmix,
    distill=settings.distill,
    distill_weight=settings.distill_weight,
    temperature=settings.distill_temperature,
    ema_decay=settings.ema,
  )


def _eval_every(run: Run) -> int:
  """Returns the steps between evaluations on held-out images; 0 for none."""
  if not len(run.holdout_indices()):
    return 0
  if run.settings.eval_every is not None:
    return run.settings.eval_every
  return run.settings.checkpoint_every


def _evaluate_holdout(
  run: Run,
  preprocessing: Preprocessing,
  module: ViT,
  params: Params,
  dilution_factor: Array | None,
) -> dict[str, float]:
  batches = run.holdout_batches(preprocessing)
  if module.segmentation is not None:
    return evaluate_masks.holdout_scores(
      module, params, batches, run.mesh, dilution_factor
    )
  scores = accuracy.evaluate_params(
    module, params, batches, run.mesh, dilution_factor
  )
  return {'loss': scores['loss'], 'accuracy': scores['top1']}


def fit(run: Run, job: Job, model: Model) -> None:
  """Trains `model`; checkpoints go to the folder of the job's stage."""
  checkpointer = orbax_store.Checkpointer(
    run.path('checkpoints') / job.stage,
    keep=run.settings.keep_checkpoints,
    keep_best=job.eval_every > 0,
  )
  loop.fit(
    job,
    lambda: model.params,
    checkpointer,
    run.mesh,
    run.metrics,
    run.reporter,
  )
  checkpointer.close()
