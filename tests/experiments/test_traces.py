"""Spans of a real federation's rounds, kept in memory in the place of being sent."""

import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.proto.profile import Profile
from diastole.server.events import DevicesMoved, Move, Phase, RoundStarted, RoundTimed, RunFinished, as_dict
from diastole.server.observe.traces import SAMPLED, STAGES, Traced, provider
from diastole.simulations.devices import make_federation
from diastole.simulations.simulation import Simulation

DOCUMENT = {
    "data": {"proxy": 40},
    "rounds": {"count": 2, "patience": 60},
    "tiers": {"small": {"devices": 1, "width": 0.25}},
}


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(spans: InMemorySpanExporter) -> Traced:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(spans))
    return Traced("a1b2", made.get_tracer("test"))


def below(parent: ReadableSpan, spans: InMemorySpanExporter) -> list[ReadableSpan]:
    found = spans.get_finished_spans()
    return [each for each in found if each.parent and each.parent.span_id == parent.context.span_id]


def inside(child: ReadableSpan, parent: ReadableSpan) -> bool:
    times = parent.start_time, child.start_time, child.end_time, parent.end_time
    return list(times) == sorted(times)  # type: ignore[type-var]


def test_a_round_is_a_trace_of_its_phases_and_of_devices(
    tmp_path: Path, traced: Traced, spans: InMemorySpanExporter
) -> None:
    federation = make_federation(Simulation.parse(DOCUMENT, "test"))
    ((name, item),) = federation.devices.items()

    def join() -> None:
        connection = Connection(f"127.0.0.1:{serving.port}", name, Profile("small", len(item.examples)))
        agent.run(connection, item.examples)

    run = make_run(Experiment.parse(DOCUMENT, "test"))
    with Serving(run, "127.0.0.1:0", tmp_path, observers=(traced,), figures=()) as serving:
        thread = threading.Thread(target=join)
        thread.start()
        serving.wait(60)
        thread.join(20)
    rounds = [each for each in spans.get_finished_spans() if each.name == "round"]
    assert [each.attributes and each.attributes["round"] for each in rounds] == [1, 2]
    first = rounds[0]
    assert first.attributes
    assert (first.attributes["run"], first.attributes["updates"], first.attributes["devices"]) == ("a1b2", 1, 1)
    phases = below(first, spans)
    named = "plan", "encode", "wait", "decode", "fold", "step", "learn", "prepare", "evaluate", "checkpoint", "device"
    assert {each.name for each in phases} == {*named}
    assert all(inside(each, first) for each in phases)
    (device,) = [each for each in phases if each.name == "device"]
    stages = below(device, spans)
    assert [each.name for each in stages] == list(STAGES)
    assert all(inside(each, device) for each in stages)
    assert stages[0].attributes == {"device": name}


def test_few_devices_of_many_have_spans(traced: Traced, spans: InMemorySpanExporter) -> None:
    names = [f"device-{number:05d}" for number in range(20_000)]
    traced(RoundStarted(1, dict.fromkeys(names, "width 1")))
    traced(DevicesMoved(1, tuple(Move(name, "downloading", 10.0) for name in names)))
    traced(DevicesMoved(1, tuple(Move(name, "training", 11.0) for name in names)))
    traced(DevicesMoved(7, (Move("nobody", "training", 11.0),)))
    traced(RoundTimed(1, (Phase("wait", 9.0, 12.0, 3.0),)))
    traced(RunFinished(1, stopped=False))
    found = spans.get_finished_spans()
    assert sum(each.name == "device" for each in found) == SAMPLED
    assert sum(each.name == "training" for each in found) == SAMPLED


def test_nothing_is_traced_unless_the_environment_says_where_to(caplog: pytest.LogCaptureFixture) -> None:
    assert provider({}) is None
    assert not caplog.records


def test_what_devices_have_come_to_is_told_as_any_event_is() -> None:
    event = DevicesMoved(3, (Move("one", "training", 1.5), Move("two", "late", 2.5)))
    told = asdict(event)
    assert as_dict(event) == {**told, "moves": list(told["moves"])}
