"""`python -m lambda_vit_jax`: the same as `lambda-vit`."""

from lambda_vit_jax.main import run

run()
