"""Estimators that remember every iterate, to draw what happened during training."""

__all__ = ["PaperDensity", "TracedDensity"]

import copy
import math

from flows_alone import FlowDensity

from skjeffreys._problem import SMALLEST, AdaptiveMultipliers


class Trace:
    """Keeps the models at every evaluation and takes every step.

    It takes the place of early stopping in the training loop.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.states = []

    def update(self, score, gap, pull_grows, weights):
        """Take note of an evaluation."""
        models = {"flow": self.trainer.slow_flow.weights.detach()}
        if self.trainer.proxy is not None:
            models["tilt"] = self.trainer.proxy.tilt.state_dict()
        self.states.append(copy.deepcopy(models))

    def shorten(self, remaining):
        """Return all of the remaining steps."""
        return remaining

    @property
    def best_weights(self):
        """The last ones."""
        return self.states[-1]["flow"]


class TracedDensity(FlowDensity):
    """A density whose flow and proxy can be put back to those of any evaluation.

    There is no early stopping: the fit ends with the last iterate.
    """

    def _new_trainer(self, models):
        trainer = super()._new_trainer(models)
        self._trace = Trace(trainer)
        return trainer

    def _new_early_stopping(self, folds):
        return self._trace

    def iterates(self, every=1):
        """Yield the iteration of every so many evaluations; until the next, that is the fit.

        The last is always among them, so that the fit ends as it was.
        """
        states = list(zip(self.history_["iteration"], self._trace.states, strict=True))
        for iteration, state in states[(len(states) - 1) % every :: every]:
            self._models["flow"].weights.copy_(state["flow"])
            if "tilt" in state:
                self._models["proxy"].tilt.load_state_dict(state["tilt"])
            yield iteration


class PaperDensity(TracedDensity):
    """A single flow, its proxy and its multipliers as in the paper.

    The proxy is an independent energy, and the price of relaxing a constraint is quadratic: a
    multiplier has no largest value. Its smallest is that of the library, without which all three
    could vanish.
    """

    def __init__(self, *, learning_rate_init=0.01, max_iter=1000, random_state=None):
        super().__init__(
            proxy="energy",
            n_estimators=1,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            random_state=random_state,
        )

    def _new_multipliers(self, device):
        smallest = SMALLEST[0]
        return AdaptiveMultipliers([smallest] * 3, [math.inf] * 3, device)
