"""Steps of a chunk on a card: captured once in a CUDA graph, and replayed for every step of every round.

A graph replays the same kernels on the same memory, so everything that a step reads and writes has a place of its own:
the stack, the optimiser's state, and what says which examples the step is for. Chunks that are smaller use the first
places; examples of no weight fill up what is left.
"""

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from diastole.models.crossing import send
from diastole.models.losses import Criterion
from diastole.models.state import State
from diastole.models.steps import buffers, step
from diastole.models.training import Examples, TrainConfig
from diastole.simulations.engines.agreement import NOBODY, Beside, Program
from diastole.simulations.engines.altered import Altered
from diastole.simulations.engines.arithmetic import Precision, mixed
from diastole.simulations.engines.masks import keys
from diastole.simulations.engines.schedule import Schedule
from diastole.simulations.engines.together import Together

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a step, and returns what takes it again on the same memory."""

WARM = 3
"""Steps before a capture, in which libraries choose their kernels and take their workspaces."""

CAPTURING = threading.Lock()
"""A process can capture one graph at a time."""

LOG = logging.getLogger(__name__)


def again(run: Callable[[], None]) -> Callable[[], None]:
    """Return the step itself: for devices that have no graphs."""
    return run


def graphed(run: Callable[[], None]) -> Callable[[], None]:
    """Return a call that replays what a step launches on the current CUDA device; the step itself if it must wait.

    Raises `torch.OutOfMemoryError`.
    """
    side, here = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(WARM):
            run()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other cards may be at work in other threads, and autograd has threads of its own. The stream of the steps
        # before has their workspaces, and is this card's.
        with CAPTURING, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            run()
    except RuntimeError as error:
        torch.cuda.set_stream(here)
        torch.cuda.synchronize()
        if isinstance(error, torch.OutOfMemoryError):
            raise
        LOG.warning("a step cannot be captured and is launched anew each time: %s", str(error).partition("\n")[0])
        return run
    return graph.replay


@dataclass(frozen=True, slots=True)
class Common:
    """What all steps of one kind of task have in common, on one card.

    Attributes:
        training: how devices train.
        pool: the examples of all devices, on the card.
        labels: the most labels of a device, which an objective or a balanced loss asks for; None if nobody does.
        untrained: names of tensors that stay as they are.
        least: examples that a batch needs: 2 if they see each other.
        precision: of products and convolutions.

    """

    training: TrainConfig
    pool: Examples
    labels: int | None = None
    untrained: Collection[str] = ()
    least: int = 1
    precision: Precision = "float32"


class Captured:
    """The steps of chunks of up to `devices` devices, with up to `batch` examples each, on one card."""

    def __init__(
        self, run: Program, common: Common, state: State, devices: int, batch: int, capture: Capture = again
    ) -> None:
        """Take the memory, and capture a step.

        Args:
            run: the program.
            common: what is the same for all chunks.
            state: of the sub-model; only names, shapes and where it is count.
            devices: the most of a chunk.
            batch: the most examples of a step.
            capture: how a step is taken again.

        """
        self._run, self._common, pool = run, common, common.pool
        self.devices, self.batch, place = devices, batch, pool.x.device
        self._every = {
            name: torch.zeros(
                1 if name in common.untrained else devices, *tensor.shape, dtype=tensor.dtype, device=place
            )
            for name, tensor in state.items()
        }
        self._stack = {name: tensor for name, tensor in self._every.items() if name not in common.untrained}
        self._memory = buffers(common.training, list(self._stack.values()))
        self._index = torch.zeros(batch, devices, dtype=torch.int64, device=place)
        # Only what is changed on its way has to be there before the step.
        self._changed = pool.subset(self._index) if common.training.augment else None
        self._weight = torch.zeros(batch, devices, device=place)
        self._counted, self._losses = torch.zeros(2, devices, device=place)
        # Some devices have no float64.
        self._number = torch.zeros((), dtype=torch.float32 if place.type == "mps" else torch.float64, device=place)
        self._seeds = torch.zeros(devices, dtype=torch.int64, device=place)
        self._labels = torch.full((devices, common.labels or 0), NOBODY, dtype=torch.int64, device=place)
        self._progress = torch.zeros((), device=place)
        self._rate = torch.ones((), device=place) if common.training.scheduled else None
        with mixed(common.precision, place), torch.enable_grad():
            self.replay = capture(self._step)
        self.taken = 0
        """Steps of all chunks so far."""

    def train(
        self,
        state: State,
        seeds: Sequence[int],
        counts: Sequence[int],
        starts: Sequence[int],
        progress: float = 0.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Together | None:
        """Train one sub-model on several devices, as `train_together` does; None once `stopped` says so.

        Args:
            state: of the sub-model, on the card.
            seeds: of the devices' tasks.
            counts: examples of each device, the largest count first.
            starts: where each device's examples begin in the pool.
            progress: the share of the run's rounds that is over.
            stopped: asked before every step.

        """
        place, used, common = self._weight.device, len(seeds), self._common
        schedule = Schedule.draw(seeds, counts, common.training, starts, common.least).to(place)
        altered = Altered(common.training, seeds)
        said = send(torch.tensor([seeds, starts, counts]), place)
        for name, tensor in self._every.items():
            tensor.copy_(state[name])
        for each in (self._index, self._weight, self._counted, self._losses, self._number, *chain(*self._memory)):
            each.zero_()
        self._seeds[:used] = said[0]
        self._progress.fill_(progress)
        if self._rate is not None:
            self._rate.fill_(common.training.at(progress).learning_rate)
        if self._labels.numel():
            places = torch.arange(self._labels.shape[1], device=place)
            there, last = places < said[2][:, None], len(common.pool) - 1
            mine = common.pool.y[(said[1][:, None] + places).clamp(max=last)]
            self._labels.fill_(NOBODY)
            self._labels[:used] = torch.where(there, mine, NOBODY)
        batch = schedule.index.shape[1]
        with mixed(common.precision, place), torch.enable_grad():
            steps = zip(schedule.index, schedule.weight, schedule.counted, schedule.counts, strict=True)
            for index, weight, counted, each in steps:
                if stopped():
                    return None
                self._index[:batch, :used].copy_(index)
                self._weight[:batch, :used].copy_(weight)
                self._counted[:used].copy_(counted)
                if self._changed is not None:
                    found = altered.batch(common.pool, self._index, each)
                    self._changed.x.copy_(found.x)
                    self._changed.y.copy_(found.y)
                self.replay()
                self.taken += 1
        # The next chunk has the same memory.
        return Together(
            {name: tensor[:used].clone() for name, tensor in self._stack.items()}, self._losses[:used].clone()
        )

    def _step(self) -> None:
        """Take one step of all devices; only memory that was there before is written."""
        self._number += 1
        common = self._common
        batch = common.pool.subset(self._index) if self._changed is None else self._changed
        beside = Beside(keys(self._seeds, self._number.long()), self._labels, self._progress)
        every = {name: tensor.expand(self.devices, *tensor.shape[1:]) for name, tensor in self._every.items()}
        gradients, losses = self._run(every, batch.x, batch.y, self._weight, beside)
        with torch.no_grad():
            ordered = [gradients[name].to(tensor.dtype) for name, tensor in self._stack.items()]
            active = self._weight.sum(0) > 0
            if common.labels is not None or common.least > 1:
                # Where there are no examples, an objective may come to nothing that is a number; so may a variance.
                ordered = [each.where(active.view(-1, *[1] * (each.ndim - 1)), 0.0) for each in ordered]
            step(
                common.training,
                list(self._stack.values()),
                ordered,
                self._memory,
                self._number,
                active.float(),
                stacked=True,
                rate=self._rate,
            )
            # Of a device that has diverged, what it no longer counts is not a number.
            self._losses += torch.where(self._counted > 0, losses * self._counted, 0.0)


def labelled(criterion: Criterion, pool: Examples, counts: Sequence[int]) -> int:
    """Return how many labels a device has at most; 0 if an example has not just one."""
    return max(counts, default=0) if len(criterion.labels(pool.y[:1])) else 0
