"""Config values that cannot be: one line that names the key, exit code 2."""

import pytest

from lambda_vit_jax import main
from tests.support.stage_runs import arguments


@pytest.mark.parametrize(
  'override, message',
  [
    ('pretrain.steps=soon', 'pretrain.steps'),
    ('pretrain.warmup_steps=1.5', 'pretrain.warmup_steps'),
    ('pretrain.learning_rate=fast', 'pretrain.learning_rate'),
    ('log_every=often', 'log_every'),
    ('checkpoint_every=0', 'checkpoint_every'),
    ('keep_checkpoints=0', 'keep_checkpoints'),
    ('eval_every=often', 'eval_every'),
    ('batch_size=0', 'batch_size'),
    ('batch_size=12', 'not divisible by the 8 devices'),
    ('mesh.fsdp=3', 'mesh.fsdp=3 does not divide the 8 devices'),
    ('data.train_images=some', 'data.train_images'),
    ('data.holdout_images=-1', 'data.holdout_images'),
    ('data.augment.rotation=fast', 'rotation'),
    ('model.image_size=big', 'model.image_size'),
    ('model.dtype=int8', 'model.dtype'),
    ('profile=5', 'profile'),
  ],
)
def test_a_value_of_the_wrong_kind(override, message, tmp_path, capsys):
  argv = arguments('pretrain', tmp_path / 'run', f'--config.{override}')
  assert main.main(argv) == 2
  lines = [
    line
    for line in capsys.readouterr().err.splitlines()
    if line.startswith('lambda-vit:')
  ]
  assert len(lines) == 1
  assert message in lines[0]
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


def test_nowhere_to_resume_from(tmp_path, capsys):
  argv = arguments(
    'pretrain', tmp_path / 'run', f'--config.resume_from={tmp_path}/nowhere'
  )
  assert main.main(argv) == 1
  assert 'nowhere: no checkpoint there' in capsys.readouterr().err
