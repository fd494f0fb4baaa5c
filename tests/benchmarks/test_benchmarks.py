import math
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diastole.benchmarks import agent, codecs, devices, fedconv, fold, groups, infer, memory, mixers, peers, transport
from diastole.benchmarks import round as round_
from diastole.benchmarks.errors import BenchmarkError, GroupError
from diastole.benchmarks.models import LARGE_CNN, WIDE_CNN
from diastole.benchmarks.row import Row, compare
from diastole.models.methods.fedconv import convmaps
from diastole.models.methods.registry import build, make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, tensor_bytes
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.server.link import Failure
from diastole.simulations.engines.loop import LoopLink

CNN = ModelConfig("cnn", (1, 8, 8), 10, (8, 16))
RESNET = ModelConfig("resnet", (3, 8, 8), 10, (16, 32), (1, 1))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Return the processes that a test starts; fail if one of them, or a temporary file, outlives what it is for."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def record(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield started
    assert [process.returncode for process in started if process.returncode is None] == []
    assert list(tmp_path.iterdir()) == []


def check(rows: list[Row], name: str, better: str) -> None:
    (row,) = rows
    assert (row.name, row.better) == (name, better)
    assert all(math.isfinite(number) and number > 0 for number in (row.value, row.baseline, row.ratio))
    assert row.ratio == row.value / row.baseline


# Rows


def test_a_row_has_the_documented_keys_and_its_ratio() -> None:
    row = Row.of("group.subject", 3.0, 2.0, "s", "lower")
    assert row.as_dict() == {
        "name": "group.subject",
        "value": 3.0,
        "unit": "s",
        "baseline": 2.0,
        "ratio": 1.5,
        "better": "lower",
    }
    assert list(row.as_dict()) == ["name", "value", "unit", "baseline", "ratio", "better"]


def test_compare_takes_turns_and_returns_medians_without_the_first_run() -> None:
    now, log = 0.0, []
    durations = {"subject": iter([100.0, 1.0, 9.0, 2.0]), "baseline": iter([200.0, 50.0, 4.0, 5.0])}

    def call(name: str) -> Callable[[], None]:
        def run() -> None:
            nonlocal now
            log.append(name)
            now += next(durations[name])

        return run

    assert compare(call("subject"), call("baseline"), 3, clock=lambda: now) == (2.0, 5.0)
    assert log == ["subject", "baseline"] * 4


# Groups


def test_an_unknown_group_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(GroupError, match=r"'fast'.*fedconv, transport, round, fold"):
        groups.run("fast", lambda line: None)


def test_run_measures_one_group_or_all_and_tells_before_each(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def measure(name: str) -> Callable[[], list[Row]]:
        def rows() -> list[Row]:
            log.append(name)
            return [Row.of(name, 1.0, 1.0, "s", "lower")]

        return rows

    monkeypatch.setattr(groups, "GROUPS", {name: measure(name) for name in ("a", "b")})
    monkeypatch.setattr(groups, "SCALED", {"c": lambda scale: [Row.of("c", scale, 1.0, "s", "lower")]})
    assert [row.name for row in groups.run(None, log.append)] == ["a", "b", "c"]
    assert log == ["measuring a", "a", "measuring b", "b", "measuring c"]
    assert [row.name for row in groups.run("b", log.append)] == ["b"]
    assert [row.value for row in groups.run("c", log.append, 0.25)] == [0.25]


# What is measured


def test_fedconv_measures_both_maps_of_every_tensor_that_changes() -> None:
    check(fedconv.rows(RESNET, (0.75, 0.5), repeats=2), "fedconv.resnet18", "lower")


@pytest.mark.parametrize("kind", ["compress", "dilate"])
@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_fedconv_refuses_maps_that_are_not_the_convolution(
    kind: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fedconv.FAST[kind]
    monkeypatch.setitem(fedconv.FAST, kind, lambda images, kernel: factor * right(images, kernel))
    with pytest.raises(BenchmarkError, match=kind):
        fedconv.rows(RESNET, (0.5,), repeats=1)


def test_fedconv_refuses_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(images: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        result = convmaps.compress(images, kernel)
        return result.detach() + 0.99 * (result - result.detach())

    monkeypatch.setitem(fedconv.FAST, "compress", leaky)
    with pytest.raises(BenchmarkError, match="gradient"):
        fedconv.rows(RESNET, (0.5,), repeats=1)


def test_fedconv_does_not_repeat_a_long_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[bool, int] = {}
    for long in (False, True):
        taken: list[fedconv.Layer] = []

        def sample(layer: fedconv.Layer, taken: list[fedconv.Layer] = taken, long: bool = long) -> float:
            taken.append(layer)
            return 2 * fedconv.LONG_SECONDS if long else 0.1

        monkeypatch.setattr(fedconv, "_sample", sample)
        fedconv.rows(RESNET, (0.5,), repeats=3)
        counts[long] = len(taken)
    assert counts[False] == 3 * counts[True] > 0


def test_the_running_sum_adds_each_region_once_with_its_weight() -> None:
    state = initial_state(CNN, 0)
    method = make_method("width", CNN, (0.5,), TrainConfig())
    method.prepare(state, None, Moment())
    (size,) = method.offers()
    target = fold.RunningSum(state)
    target.fold(method.dilate(method.compress(size.spec), size.spec), 3.0)
    weight = state["stages.1.0.weight"]
    inside = torch.zeros_like(weight)
    inside[:8, :4] = 3.0
    assert torch.equal(target._weight["stages.1.0.weight"], inside)
    assert torch.equal(target._sum["stages.1.0.weight"], inside * weight)


def test_fold_measures_updates_of_several_sizes() -> None:
    check(fold.rows(CNN, (1.0, 0.5), repeats=2), "fold.throughput", "higher")


def test_codecs_are_measured_beside_plain_safetensors() -> None:
    found = codecs.rows(CNN, repeats=1)
    assert [row.name for row in found] == ["codecs.bf16", "codecs.int8", "codecs.int4", "codecs.top-k"]
    assert {(row.unit, row.better) for row in found} == {("MB/s", "higher")}


@pytest.mark.parametrize(("model", "size"), [(WIDE_CNN, 64 * 2**20), (LARGE_CNN, 200e6)])
def test_models_of_the_transfer_benchmarks_have_the_sizes_that_are_quoted(model: ModelConfig, size: float) -> None:
    with torch.device("meta"):
        weights = dict(build(model).named_parameters())
    assert tensor_bytes(weights) == pytest.approx(size, rel=0.06)


@pytest.mark.slow
def test_transport_measures_a_round_trip_to_another_process(processes: list[subprocess.Popen[bytes]]) -> None:
    plain, tls, shared = transport.rows(CNN, repeats=2, wide=CNN)
    check([plain], "transport.plain", "higher")
    check([tls], "transport.tls", "higher")
    check([shared], "transport.shared", "lower")
    assert [process.returncode for process in processes][:2] == [0, 0]


@pytest.mark.slow
def test_round_measures_agents_against_the_loop(processes: list[subprocess.Popen[bytes]]) -> None:
    check(round_.rows(CNN, devices=2, repeats=2), "round.overhead", "lower")
    assert [process.returncode for process in processes] == [0]


@pytest.mark.slow
def test_a_coordinator_is_measured_with_many_devices(processes: list[subprocess.Popen[bytes]]) -> None:
    idle, busy, memory = devices.rows(1.0, watch=2.0, devices=100, uploading=10, lease=3.0)
    check([idle], "devices.idle", "lower")
    check([busy], "devices.busy", "lower")
    check([memory], "devices.memory", "lower")
    assert memory.value > memory.baseline
    assert len(processes) == 5


@pytest.mark.slow
def test_memory_is_measured_with_few_devices_and_with_many(
    processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Optimisers import torch's compiler, which makes a folder.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    flat, all_ = memory.rows(1.0, CNN, devices=12)
    check([flat], "memory.flat", "lower")
    check([all_], "memory.needs_all", "lower")
    assert len(processes) == 2


# What goes wrong


@pytest.mark.slow
def test_a_process_that_fails_ends_the_measurement(processes: list[subprocess.Popen[bytes]]) -> None:
    with (
        pytest.raises(BenchmarkError, match="0 of 1 devices"),
        peers.serving(CNN, initial_state(CNN, 0), 1, "x"),
    ):
        pass
    assert len(processes) == 1


class Silent(LoopLink):
    """A link whose devices bring `outcomes`, whatever they are given."""

    outcomes: Sequence[Failure] = ()

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Failure, None, None]:
        yield from self.outcomes


def test_a_device_that_brings_no_update_ends_the_measurement() -> None:
    link = Silent(CNN, {})
    task = Task("r1-d", 1, "d", peers.FULL, TrainConfig(), 0)
    with pytest.raises(BenchmarkError, match="0 of 1 devices"):
        peers.finish(link, [task], {})
    link.outcomes = [Failure("d", "out of memory", faulty=False)]
    with pytest.raises(BenchmarkError, match="d: out of memory"):
        peers.finish(link, [task], {})


# Agent


@pytest.mark.slow
def test_an_agent_is_ready_and_idle_and_measured(processes: list[subprocess.Popen[bytes]]) -> None:
    start, memory, own, trained = agent.rows(repeats=1)
    check([start], "agent.start", "lower")
    check([memory], "agent.memory", "lower")
    check([own], "agent.memory_own", "lower")
    check([trained], "agent.memory_trained", "lower")
    assert start.value > start.baseline
    assert 10 < own.value - own.baseline < 60 < memory.baseline
    assert own.value - own.baseline < memory.value - memory.baseline < 200


# Streams


def test_streams_are_measured_against_the_plain_model_on_every_window() -> None:
    rows = infer.rows(length=256, repeats=1)
    assert [row.name for row in rows] == [f"infer.stream.{each}" for each in ("50", "75", "87.5", "93.75")]
    for row in rows:
        check([row], row.name, "higher")


# Mixers


def test_what_mixes_places_is_measured_beside_a_depthwise_layer() -> None:
    rows = mixers.rows(batch=2, maps=((16, 4),), repeats=1)
    names = {row.name for row in rows}
    assert names >= {f"mixer.{each}.16x4" for each in ("dense3", "pointwise", "depthwise3", "partial", "inception")}
    for row in rows:
        check([row], row.name, "lower")
