"""Types of settings that several sections share, with their readers."""

from typing import Annotated

from lambda_vit_jax.cli import config_values
from lambda_vit_jax.cli.config_values import ListOf, Real, Steps, Whole

GREATEST_SIDE = 1 << 16
"""Of an image, and width of a layer; checkpoints/description.py has the same."""

# One less than the largest depth.
_LAST_BLOCK = 255

Natural = Annotated[int, Whole()]
Positive = Annotated[int, Whole(1)]
Side = Annotated[int, Whole(1, GREATEST_SIDE)]
Rate = Annotated[float, Real(0, 10)]
Probability = Annotated[float, Real(0, 1)]
# Leaves something for the rest.
Part = Annotated[float, Real(0, 1, below=True)]
# Of a beta distribution; 0 for no mixing.
Concentration = Annotated[float, Real(0, 1000)]
Flag = Annotated[bool, config_values.flag]
Length = Annotated[config_values.Duration, Steps()]
Names = Annotated[tuple[str, ...], config_values.sequence]
Block = Annotated[int, Whole(0, _LAST_BLOCK)]
Blocks = Annotated[tuple[int, ...], ListOf(Whole(0, _LAST_BLOCK))]
