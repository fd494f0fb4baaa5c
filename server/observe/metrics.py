"""Metrics for Prometheus: what is counted, and its text. No label has values without bound: no name of a device."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from diastole.proto.missing import needed
from diastole.proto.words import PROTOCOL_VERSION
from diastole.server.errors import ExtraError
from diastole.server.observe.tally import SECONDS, Histogram, Tally

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "diastole_"
Values = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Spec:
    """A metric.

    Attributes:
        name: without the prefix.
        kind: "counter", "gauge" or "histogram".
        help: what it counts, one line.
        labels: names of its labels.

    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


SPECS = (
    Spec("info", "gauge", "1; its labels say which version runs", ("version", "protocol")),
    Spec("start_time_seconds", "gauge", "when the coordinator was started, in seconds since 1970"),
    Spec("runs", "gauge", "runs by state: queued, held, running, paused or over", ("state",)),
    Spec("run_failures_total", "counter", "runs that could not go on, or came to nothing"),
    Spec("rounds_total", "counter", "rounds that are over: closed, abandoned or rolled back", ("outcome",)),
    Spec("last_round_timestamp_seconds", "gauge", "when the last round was over; 0 before the first"),
    Spec("score", "gauge", "the global model's last score on the test set", ("metric",)),
    Spec("devices", "gauge", "devices that are remembered, by state and tier", ("state", "tier")),
    Spec("connections", "gauge", "devices with an open stream of tasks"),
    Spec("updates_total", "counter", "tasks by what became of them", ("outcome",)),
    Spec("quarantined_total", "counter", "what devices sent and nobody may use, by kind of reason", ("reason",)),
    Spec("declined_total", "counter", "tasks that devices declined, by why", ("why",)),
    Spec("payload_bytes_total", "counter", "bytes of models and updates, of closed rounds", ("direction",)),
    Spec("transfers_open", "gauge", "transfers that move now", ("direction",)),
    Spec("transfers_waiting", "gauge", "transfers that wait in line", ("direction",)),
    Spec("transfers_stalled_total", "counter", "transfers that stood still for too long, or crept"),
    Spec("transfers_unstored_total", "counter", "updates that the disk did not take"),
    Spec("round_seconds", "histogram", "seconds of rounds"),
    Spec("phase_seconds", "histogram", "seconds of a round's phases", ("phase",)),
    Spec("train_seconds", "histogram", "seconds of training of accepted updates, as devices say"),
    Spec("fold_updates_per_second", "gauge", "updates that the last round folded in a second of folding"),
    Spec("memory_bytes", "gauge", "memory of the coordinator: resident, and its peak", ("kind",)),
    Spec("disk_free_bytes", "gauge", "free bytes where the state folder is"),
    Spec("certificate_expiry_timestamp_seconds", "gauge", "when the coordinator's authority ends to count"),
)
"""Every metric, in the order of the text."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a coordinator stands now.

    Attributes:
        runs: by state.
        devices: by state and tier.
        connections: open streams of tasks.
        transfers: those that move and those that wait, by direction.
        stalled: transfers that stood still.
        unstored: updates that were not stored.
        expiry: when its authority's certificate ends, in seconds since 1970; None without one.
        folder: its state folder.

    """

    runs: Mapping[str, int]
    devices: Mapping[tuple[str, str], int]
    connections: int
    transfers: Mapping[str, tuple[int, int]]
    stalled: int
    unstored: int
    expiry: float | None
    folder: Path


def exposition(tally: Tally, standing: Callable[[], Standing]) -> tuple[bytes, str]:
    """Return all metrics as Prometheus reads them, and the type of that text.

    Raises `ExtraError` without the library.
    """
    with needed(ExtraError, "metrics", "prometheus-client", "diastole[metrics]"):
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(tally, standing()))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector:
    """Makes the library's metrics of a tally and a standing."""

    def __init__(self, tally: Tally, standing: Standing) -> None:
        self._tally, self._standing = tally, standing

    def collect(self) -> Iterator["Metric"]:
        """Yield every metric."""
        with self._tally.lock:
            found = {**_counted(self._tally), **_stands(self._standing), **_process(self._standing.folder)}
            histograms: dict[str, dict[tuple[str, ...], Histogram]] = {
                "round_seconds": {(): self._tally.whole},
                "phase_seconds": {(name,): each for name, each in self._tally.phases.items()},
                "train_seconds": {(): self._tally.training},
            }
            yield from [_metric(spec, found.get(spec.name, {}), histograms.get(spec.name, {})) for spec in SPECS]


def _metric(spec: Spec, values: Values, histograms: Mapping[tuple[str, ...], Histogram]) -> "Metric":
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    name = PREFIX + spec.name
    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(name, spec.help, labels=spec.labels)
        for labels, each in histograms.items():
            histogram.add_metric(labels, _buckets(each), each.sum)
        return histogram
    family = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    single = family(name, spec.help, labels=spec.labels)
    for labels, value in values.items():
        single.add_metric(labels, value)
    return single


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    total, made = 0, list[tuple[str, float]]()
    for bound, count in zip((*map(str, SECONDS), "+Inf"), histogram.counts, strict=True):
        total += count
        made.append((bound, total))
    return made


def _counted(tally: Tally) -> dict[str, Values]:
    """Return what a tally has; outcomes that have not been met are 0, so that an increase is seen from the first on."""
    updates = dict.fromkeys(("accepted", "quarantined", "lost", "declined", "late"), 0) | tally.updates
    rounds = dict.fromkeys(("closed", "abandoned", "rolled back"), 0) | tally.rounds
    return {
        "info": {(version("diastole"), str(PROTOCOL_VERSION)): 1.0},
        "start_time_seconds": {(): tally.began},
        "run_failures_total": {(): tally.failures},
        "rounds_total": _single(rounds),
        "last_round_timestamp_seconds": {(): tally.last},
        "score": _single(tally.scores),
        "updates_total": _single(updates),
        "quarantined_total": _single({"unknown task": 0} | tally.quarantines),
        "declined_total": _single(tally.declined),
        "payload_bytes_total": _single({"down": 0, "up": 0} | tally.bytes),
        "fold_updates_per_second": {(): tally.fold_rate},
    }


def _stands(standing: Standing) -> dict[str, Values]:
    return {
        "runs": _single(standing.runs),
        "devices": {labels: float(count) for labels, count in standing.devices.items()},
        "connections": {(): standing.connections},
        "transfers_open": {(direction,): float(open_) for direction, (open_, _) in standing.transfers.items()},
        "transfers_waiting": {(direction,): float(rest) for direction, (_, rest) in standing.transfers.items()},
        "transfers_stalled_total": {(): standing.stalled},
        "transfers_unstored_total": {(): standing.unstored},
        "certificate_expiry_timestamp_seconds": {} if standing.expiry is None else {(): standing.expiry},
    }


def _process(folder: Path) -> dict[str, Values]:
    memory: dict[tuple[str, ...], float] = {}
    for line in _status():
        name, _, value = line.partition(":")
        if kind := {"VmRSS": "resident", "VmHWM": "peak"}.get(name):
            memory[kind,] = float(value.split()[0]) * 1024
    return {"memory_bytes": memory, "disk_free_bytes": {(): float(shutil.disk_usage(folder).free)}}


def _status() -> list[str]:
    """Return what Linux tells of this process; nothing elsewhere."""
    try:
        return Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _single(values: Mapping[str, float]) -> Values:
    return {(name,): float(value) for name, value in values.items()}
