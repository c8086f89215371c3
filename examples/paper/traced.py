"""Estimators that remember every iterate, to draw what happened during training."""

__all__ = ["TracedDensity"]

import copy

from flows_alone import FlowDensity


class Trace:
    """Keeps the models at every evaluation and never stops training.

    It takes the place of early stopping in the training loop.
    """

    should_stop = False

    def __init__(self, trainer):
        self.trainer = trainer
        self.states = []

    def update(self, scores, weights):
        """Take note of an evaluation."""
        models = {"flow": self.trainer.slow_flow.weights.detach()}
        if self.trainer.proxy is not None:
            models["tilt"] = self.trainer.proxy.tilt.state_dict()
        self.states.append(copy.deepcopy(models))

    @property
    def best_weights(self):
        """The last ones."""
        return self.states[-1]["flow"]


class TracedDensity(FlowDensity):
    """A density whose flow and proxy can be put back to those of any evaluation.

    There is no early stopping: the fit ends with the last iterate.
    """

    def _new_trainer(self, models, n_rows):
        trainer = super()._new_trainer(models, n_rows)
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
