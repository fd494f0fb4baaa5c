"""How good the global model and its sizes are: on the test set for people, on the proxy set to end a run early."""

from collections.abc import Sequence

from torch import Tensor

from diastole.models.hollow import hollow
from diastole.models.loading import load
from diastole.models.method import Method, Size
from diastole.models.metrics import LOSS
from diastole.models.networks.custom.blame import blamed
from diastole.models.proxy import Proxy
from diastole.models.recalibrate import ready
from diastole.models.scoring import evaluate
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Examples
from diastole.server.settings import Settings

Scores = dict[str, float]
"""The settings' metrics by name, in their order, and then "loss"."""


class Evaluation:
    """Scores a method's sub-models, each once until the global model moves on."""

    def __init__(
        self, settings: Settings, method: Method, sizes: Sequence[Size], proxy: Proxy | None, test: Examples | None
    ) -> None:
        self._settings, self._method, self._sizes = settings, method, sizes
        self._proxy, self._test = proxy or Proxy.empty(), test
        self._criterion = settings.training.criterion
        self._known: dict[SubModelSpec, Scores] = {}

    def forget(self) -> None:
        """Score anew from now on: the global model has moved on."""
        self._known.clear()

    def whole(self) -> Scores | None:
        """Return the global model's scores on the test set, or None without one."""
        return self._on_test(self._method.whole)

    def sizes(self) -> dict[str, Scores]:
        """Return the scores of each exported size's sub-model, as the next round would send it out, by label."""
        found = {size.spec.label: self._on_test(size.spec) for size in self._sizes if size.exported}
        return {label: scores for label, scores in found.items() if scores is not None}

    def validation(self) -> float | None:
        """Return the global model's score on the proxy set's validation part, if the run may be ended by it."""
        stopping = self._settings.stopping
        if stopping is None:
            return None
        whole, metrics = self._method.whole, () if stopping.metric == LOSS else (stopping.metric,)
        return self.on(whole, self._method.compress(whole), self._proxy.validation, metrics)[stopping.metric]

    def on(
        self,
        spec: SubModelSpec,
        state: State,
        examples: Examples,
        metrics: tuple[str, ...] | None = None,
        inputs: Tensor | None = None,
    ) -> Scores:
        """Return the scores of a sub-model with these parameters on any examples.

        Args:
            spec: of the sub-model.
            state: its parameters.
            examples: any.
            metrics: by default the run's.
            inputs: of which batch normalisation has statistics, by default the proxy set's.

        """
        metrics = self._settings.metrics if metrics is None else metrics
        inputs = self._proxy.training.x if inputs is None else inputs
        with hollow():
            module = self._method.module(spec)
        load(module, state)
        with blamed(self._settings.model, "in evaluation"):
            score = evaluate(ready(module, inputs), examples, self._criterion, metrics)
        return {**score.metrics, LOSS: score.loss}

    def _on_test(self, spec: SubModelSpec) -> Scores | None:
        if self._test is None:
            return None
        if spec not in self._known:
            self._known[spec] = self.on(spec, self._method.compress(spec), self._test)
        return self._known[spec]
