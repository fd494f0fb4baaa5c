"""One training step of a whole module under a plan: whether it is right, and how long it takes."""

import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from math import inf, sqrt

import torch
from torch import Tensor, nn

from diastole.client.plans.apply import apply, arrange, running
from diastole.client.plans.plan import REFERENCE, Plan
from diastole.client.plans.trace import Trace, Tracer
from diastole.models.batches import least_batch
from diastole.models.dropout import draw_from
from diastole.models.seeds import generator
from diastole.models.training import Examples, Step, TrainConfig, loss_of

TOLERANCE = 1e-3
"""Of the length of the gradient: a layer that computes something else is off by as much as its own gradient."""

ROUGHER, ROUGHEST = 1.25, 0.3
"""Times as far off as PyTorch's own bf16 that a plan in bf16 may be, and how far at all: rounding alone moves the
gradient of an 18-layer ResNet by 0.1 to 0.2 of its length, and that of two convolutions by 0.02."""

FEW = 4
"""Examples in a step that is not timed."""

ROUNDS, MOST_ROUNDS, LEAST_SECONDS = 3, 40, 0.2
"""Turns of each plan that are timed: more than `ROUNDS` until all together have taken `LEAST_SECONDS`, because what
short steps take varies more."""
CLEAR = 1.25
"""Times as long as the fastest plan that a plan may take to have another turn."""

LONGEST = 0.15
"""Seconds of a step above which fewer examples are timed: of few, a plan is judged by its calls."""

Gradients = Sequence[Tensor | None]


class Trial:
    """A module, which stays as it is, and a batch, on which plans are tried.

    Attributes:
        place: of the batch.
        step_seconds: that the reference took for a step of few examples, once it is traced.

    """

    def __init__(self, module: nn.Module, batch: Examples, training: TrainConfig) -> None:
        self._module, self._batch, self._training = module, batch, training
        self._few = batch
        self._exact: Gradients = ()
        self.place = batch.x.device
        self.step_seconds = 0.0

    def trace(self) -> Trace:
        """Run a step as the reference does, and return what it asked for. Raises what the module raises."""
        module, count = self._copy(), len(self._batch)
        self._few = self._batch.part(0, max(least_batch(module), FEW))
        with Tracer(module) as tracer:
            self._exact = self._step(module, REFERENCE, self._few)
        began = time.perf_counter()
        self._step(module, REFERENCE, self._few)
        self.step_seconds = time.perf_counter() - began
        each = self.step_seconds / len(self._few)
        self._batch = self._batch.part(0, max(len(self._few), min(count, int(LONGEST / each))))
        return tracer.trace(len(self._few), count)

    def right(self, plan: Plan) -> bool:
        """Return whether the gradients under a plan are the reference's, but for the rounding of its precision."""
        try:
            rounding = 0.0 if plan.precision == "fp32" else ROUGHER * self._error(Plan(precision=plan.precision))
            return self._error(plan) <= min(TOLERANCE + rounding, ROUGHEST)
        except Exception:  # noqa: BLE001 (a user's module may raise anything under what it does not expect)
            return False

    def _error(self, plan: Plan) -> float:
        """Return how far the gradients under a plan are from the reference's, as a share of their length."""
        found = self._step(self._planned(plan), plan, self._few)
        if [each is None for each in found] != [each is None for each in self._exact]:
            return inf
        pairs = [(a, b) for a, b in zip(found, self._exact, strict=True) if a is not None and b is not None]
        off, length = _length(a - b for a, b in pairs), _length(b for _, b in pairs)
        return off / length if length else 0.0 if not off else inf

    def seconds(self, plans: Sequence[Plan], clock: Callable[[], float]) -> list[float]:
        """Return the least time of a step under each plan; they take turns, after one step each that is not timed.

        Those that are clearly slower have one turn if steps are long, and so has the fastest if all others are.
        """
        best = [float("inf")] * len(plans)
        close = list(range(len(plans)))
        ends = clock() + LEAST_SECONDS
        for turn in range(1 + MOST_ROUNDS):
            for number in close:
                # One at a time: their weights are copies where a plan wants them in another order.
                module = self._planned(plans[number])
                began = clock()
                self._step(module, plans[number], self._batch)
                if turn:
                    best[number] = min(best[number], clock() - began)
            if clock() < ends:
                continue
            close = [number for number in close if best[number] <= CLEAR * min(best)]
            if len(close) < 2 or turn >= ROUNDS:
                break
        return best

    def _planned(self, plan: Plan) -> nn.Module:
        module = self._copy()
        apply(module, plan)
        arrange(module)
        return module

    def _copy(self) -> nn.Module:
        """Return a copy with the same weights, which steps do not change."""
        same = {id(weight): nn.Parameter(weight.detach(), weight.requires_grad) for weight in self._module.parameters()}
        return deepcopy(self._module, same)

    def _step(self, module: nn.Module, plan: Plan, batch: Examples) -> Gradients:
        """Return the gradients of all that is trained."""
        draws, criterion = generator("plan"), self._training.criterion
        module.train()
        draw_from(module, draws)
        weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
        step = Step(draws, 0.0, criterion.labels(batch.y), criterion)
        with running(plan, self.place.type), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = torch.autograd.grad(loss_of(module, batch, step), weights, allow_unused=True)
            if self.place.type != "cpu":
                torch.accelerator.synchronize(self.place)
            return found


def _length(tensors: Iterable[Tensor]) -> float:
    return sqrt(sum(float(torch.linalg.vector_norm(each, dtype=torch.float64)) ** 2 for each in tensors))
