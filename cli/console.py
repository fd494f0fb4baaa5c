"""Live progress: a moving picture on a terminal, plain lines in a pipe."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from diastole.cli.sizes import megabytes
from diastole.experiments.report.metric import is_share
from diastole.models.metrics import shown, title
from diastole.server.events import (
    DeviceJoined,
    DeviceLeft,
    DeviceLost,
    DevicesMoved,
    Event,
    RoundClosed,
    RoundStarted,
    RunStarted,
    TaskDeclined,
    UpdateAccepted,
    UpdateQuarantined,
)
from diastole.server.observe.lines import Lines

MANY_DEVICES, RECENT_ROUNDS = 24, 10
UNDER_WAY = ("training", "downloading", "uploading", "delivered")
STYLES = dict.fromkeys((*UNDER_WAY, "late"), "yellow") | dict.fromkeys(("lost", "gone", "quarantined"), "red")
CURVE = " ▁▂▃▄▅▆▇█"


class Watch:
    """Observes a run and shows it on `console`; use as a context manager around the run."""

    def __init__(
        self,
        console: Console,
        tiers: Mapping[str, str],
        title: str = "",
        *,
        moving: bool = True,
        lines: bool = True,
    ) -> None:
        """Watch devices whose tier is given by name; `title` stands before every line of this run.

        Without `moving` there are plain lines on a terminal too, where others are written beside. Without `lines` there
        are none, because a log has them.
        """
        self._console = console
        self._tiers = dict(tiers)
        self._title = title
        self._lines, self._says = Lines(), lines
        self._live = (
            Live(console=console, refresh_per_second=8, transient=True) if moving and console.is_terminal else None
        )
        self._method = ""
        self._round = self._rounds = 0
        self._began = time.monotonic()
        self._devices: dict[str, tuple[str, str]] = {}
        self._metric = "accuracy"
        self._scores: list[float] = []
        self._ends: list[float] = []
        self._bytes = 0

    def __enter__(self) -> "Watch":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case RunStarted():
                self._method, self._rounds, self._began = event.method, event.rounds, time.monotonic()
                self._metric = event.metric
                self._devices = dict.fromkeys(event.devices, ("", "waiting"))
            case RoundStarted():
                self._round = event.round
                self._devices = dict.fromkeys(self._devices, ("", "")) | {
                    device: (spec, "training") for device, spec in event.specs.items()
                }
            case DevicesMoved():
                for move in event.moves:
                    spec, state = self._devices.get(move.device, ("", ""))
                    if event.round == self._round and state in UNDER_WAY:
                        self._devices[move.device] = spec, UNDER_WAY[0] if move.stage == "given" else move.stage
            case UpdateAccepted():
                self._devices[event.device] = (event.spec, f"done in {event.seconds:.2f} s, loss {event.loss:.2f}")
            case UpdateQuarantined():
                self._mark(event.device, "quarantined")
            case DeviceLost():
                self._mark(event.device, "lost")
            case TaskDeclined():
                self._mark(event.device, "declined")
            case RoundClosed():
                self._closed(event)
            case DeviceJoined():
                self._tiers[event.device] = event.tier
                self._devices.setdefault(event.device, ("", "waiting"))
            case DeviceLeft():
                self._mark(event.device, "gone")
        for line in self._lines(event):
            if self._says and line.level >= logging.INFO and not (line.routine and self._live):
                self._note(line.text)
        if self._live:
            self._live.update(self._picture())

    def _closed(self, event: RoundClosed) -> None:
        self._ends.append(time.monotonic())
        self._bytes += event.bytes_down + event.bytes_up
        scores = event.scores or {}
        if self._metric in scores:
            self._scores.append(scores[self._metric])

    def _mark(self, device: str, state: str) -> None:
        if device in self._devices:
            self._devices[device] = (self._devices[device][0], state)

    def _note(self, text: str) -> None:
        title = f"[{self._title}] " if self._title else ""
        self._console.print(f"{title}{text}", soft_wrap=True)

    def _times(self) -> str:
        elapsed = time.monotonic() - self._began
        done, left = len(self._ends), self._rounds - self._round
        if not done or not left:
            return f"{elapsed:.0f} s"
        # The last rounds tell more than the first, which pay for what is done once.
        recent = self._ends[-RECENT_ROUNDS:]
        each = (recent[-1] - (recent[0] if len(recent) > 1 else self._began)) / max(1, len(recent) - 1)
        return f"{elapsed:.0f} s, {each * left:.0f} s to go"

    def _picture(self) -> Group:
        head = Table.grid(padding=(0, 2))
        share = self._round / self._rounds if self._rounds else 0.0
        seen = self._scores[-40:]
        now = f"{score(self._metric, seen[-1])} {curve(self._metric, seen)}" if seen else ""
        head.add_row(
            Text(self._title or self._method, style="bold"),
            f"round {self._round}/{self._rounds}",
            ProgressBar(total=1.0, completed=share, width=24),
            now,
            f"{megabytes(self._bytes)}  {self._times()}",
        )
        if len(self._devices) > MANY_DEVICES:
            states = [state.split(" ")[0] for _, state in self._devices.values()]
            counts = {state: states.count(state) for state in dict.fromkeys(states) if state}
            return Group(head, Text("  ".join(f"{count} {state}" for state, count in counts.items())))
        body = Table(box=None, padding=(0, 2))
        for column in ("device", "tier", "sub-model", "state"):
            body.add_column(column, header_style="dim")
        for device, (spec, state) in self._devices.items():
            style = STYLES.get(state, "green")
            body.add_row(device, self._tiers.get(device, ""), spec, Text(state, style=style))
        scores = "  ".join(self._lines.standing())
        return Group(head, body, Text(f"  sub-models so far: {scores}" if scores else "", style="dim"))


def score(metric: str, value: float | None) -> str:
    """Return a score with the name of its metric, or a dash for None: "accuracy 91.2%"."""
    return f"{title(metric)} {figure(metric, value)}"


def figure(metric: str, value: float | None) -> str:
    """Return a score, or a dash for None."""
    return "-" if value is None else shown(metric, value)


def curve(metric: str, values: Sequence[float]) -> str:
    """Return a score's way as a line of bars: shares from 0 to 1, all else from the lowest to the highest there was."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (0.0, 1.0) if is_share(metric) or not finite else (min(finite), max(finite))
    steps = len(CURVE) - 1
    return "".join(CURVE[round((value - low) / ((high - low) or 1.0) * steps)] for value in finite)
