"""Warnings raised by skjeffreys, each with a class of its own to filter on."""

__all__ = ["DegenerateDataWarning", "NormalizerWarning"]


class DegenerateDataWarning(UserWarning):
    """The data has no density as it stands: constant or rounded columns, repeated rows."""


class NormalizerWarning(UserWarning):
    """The normaliser of the proxy could not be measured: too few samples carry its estimate."""
