"""Densities of tables of numbers, in scikit-learn's terms."""

from .density import JeffreysDensity
from .exceptions import DegenerateDataWarning, NormalizerWarning

__all__ = ["DegenerateDataWarning", "JeffreysDensity", "NormalizerWarning"]
__version__ = "0.1.0"
