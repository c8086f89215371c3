"""Warnings raised by skjeffreys, each with a class of its own to filter on."""

__all__ = ["DegenerateDataWarning", "ExtrapolationWarning", "NormalizerWarning"]


class DegenerateDataWarning(UserWarning):
    """The data has no density: constant, rounded or dependent columns, or repeated rows."""


class ExtrapolationWarning(UserWarning):
    """Conditions are far from all that a conditional density was trained on."""


class NormalizerWarning(UserWarning):
    """The normaliser of the proxy could not be measured: too few samples carry its estimate."""
