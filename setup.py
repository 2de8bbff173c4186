"""The list of packages; everything else is declared in pyproject.toml.

`packages.find` cannot name `lambda_vit_jax.configs`, whose files live in
`configs/` at the root (see `package-dir` in pyproject.toml).
"""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=['lambda_vit_jax*']),
    'lambda_vit_jax.configs',
  ]
)
