"""Densities of tables of numbers, in scikit-learn's terms."""

from torch.distributions import Distribution

# Importing zuko turns the argument validation of all torch distributions off; put it back.
_validate_args = Distribution._validate_args

from .conditional import JeffreysConditionalDensity  # noqa: E402
from .density import JeffreysDensity  # noqa: E402
from .exceptions import (  # noqa: E402
    DegenerateDataWarning,
    ExtrapolationWarning,
    NormalizerWarning,
)

Distribution.set_default_validate_args(_validate_args)

__all__ = [
    "DegenerateDataWarning",
    "ExtrapolationWarning",
    "JeffreysConditionalDensity",
    "JeffreysDensity",
    "NormalizerWarning",
]
__version__ = "0.1.0"
