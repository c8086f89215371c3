"""The density of the flows alone, as in the paper."""

__all__ = ["FlowDensity"]

from skjeffreys import JeffreysDensity


class FlowDensity(JeffreysDensity):
    """JeffreysDensity without the mixtures beside its flows."""

    def _mixture_candidates(self, folds, regressions):
        return []
