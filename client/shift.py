"""One task's training on its owner's terms: it rests, pauses, saves, and stops before a wall of memory."""

import threading
import time
from collections.abc import Callable

from diastole.client.budget import Watchman
from diastole.client.errors import BudgetError
from diastole.client.keeper import Keeper
from diastole.client.plans.plan import Plan
from diastole.client.walls import UNSEEN, Peak, near
from diastole.models.trainstate import TrainState

LOOK_SECONDS = 1.0
"""Between two looks at what the owner allows."""
RESERVE = 32 << 20
"""Bytes before a wall at which training stops: the agent itself must live on."""
SHORTEST_REST = 0.005


class Shift:
    """What is called between the steps of one task: `stopped` before each, `between` behind each."""

    def __init__(
        self,
        keeper: Keeper,
        plan: Plan,
        watchman: Watchman,
        *,
        cpu: float = 1.0,
        memory: int | None = None,
        seconds: float = 0.0,
        given_up: Callable[[], bool] = lambda: False,
        tell: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Begin to train.

        Args:
            keeper: saves steps.
            plan: under which is trained.
            watchman: says why not to work.
            cpu: the share of the time to train in.
            memory: bytes that training may take; None for no limit.
            seconds: that an earlier start has trained.
            given_up: whether nobody needs the task any more.
            tell: is told why training pauses, and that it goes on, with no words.

        """
        self._keeper, self._plan, self._watchman = keeper, plan, watchman
        self._cpu, self._memory, self._given_up, self._tell = cpu, memory, given_up, tell
        self._state: TrainState | None = None
        self._peak: Peak | None = Peak()
        self._began = self._worked = self._looked = time.monotonic()
        self._before, self._debt = seconds, 0.0

    @property
    def seconds(self) -> float:
        """The seconds of training so far, rests included and pauses not."""
        return self._before + time.monotonic() - self._began

    def stopped(self) -> bool:
        """Rest as long as the owner wants; return whether nobody needs the task any more."""
        now = time.monotonic()
        self._debt += (now - self._worked) * (1 / self._cpu - 1)
        while self._debt >= SHORTEST_REST and not self._given_up():
            part = min(self._debt, LOOK_SECONDS)
            self._wait(part)
            self._debt -= part
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
        self._worked = time.monotonic()
        return self._given_up()

    def between(self, state: TrainState) -> None:
        """Save a step if it is time. Raises `BudgetError` if the steps take more memory than there is."""
        self._state = state
        if self._peak is not None:
            grown, self._peak = self._peak.grown(), None
            if self._memory is not None and grown > self._memory + UNSEEN:
                raise BudgetError(f"a step takes {grown} bytes of memory; this device has {self._memory} for training")
            self._check_walls()
        if self._keeper.due():
            self._keeper.keep(state, self.seconds, self._plan)

    def _look(self) -> None:
        why = self._watchman.obstacle()
        if why:
            began = time.monotonic()
            if self._state is not None:
                self._keeper.keep(self._state, self.seconds, self._plan)
            self._tell(why)
            while self._watchman.obstacle() and not self._given_up():
                self._wait(LOOK_SECONDS)
            self._tell("")
            self._began += time.monotonic() - began
        self._check_walls()
        self._looked = time.monotonic()

    def _check_walls(self) -> None:
        if near(RESERVE):
            raise BudgetError(f"training has come within {RESERVE} bytes of this device's limit of memory")

    def _wait(self, seconds: float) -> None:
        threading.Event().wait(seconds)
