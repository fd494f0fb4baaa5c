"""What Prometheus is told of a real federation, read by Prometheus' own parser."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.proto.profile import Profile
from diastole.server.events import (
    DevicesMoved,
    Move,
    RoundClosed,
    RunFinished,
    TaskDeclined,
    UpdateQuarantined,
)
from diastole.server.observe.metrics import PREFIX, SPECS
from diastole.server.observe.tally import Tally, kind_of
from diastole.server.web.config import WebConfig
from diastole.simulations.devices import make_federation
from diastole.simulations.simulation import Simulation

PACKAGING = Path(__file__).parents[2] / "packaging"
DOCUMENT = {
    "data": {"proxy": 40},
    "rounds": {"count": 2, "patience": 60},
    "tiers": {"small": {"devices": 2, "width": 0.25}},
}
METRICS = {spec.name for spec in SPECS}
Samples = dict[str, dict[frozenset[tuple[str, str]], float]]


def scraped(serving: Serving) -> Samples:
    """Return every sample by name and labels, as Prometheus' own parser reads what it gets at /metrics."""
    assert serving.web is not None
    token = serving.web.reader.read_text().strip()
    url = f"http://127.0.0.1:{serving.web_port}/metrics"
    reply = httpx.get(url, headers={"authorization": f"Bearer {token}"})
    assert reply.headers["content-type"].startswith("text/plain")
    return samples(reply.text)


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def test_a_federation_is_scraped_while_it_runs_and_when_it_is_over(tmp_path: Path) -> None:
    federation = make_federation(Simulation.parse(DOCUMENT, "test"))
    during = list[Samples]()

    def watch(event: Any) -> None:
        if isinstance(event, RoundClosed) and event.round == 1:
            during.append(scraped(serving))

    def join(name: str) -> None:
        item = federation.devices[name]
        connection = Connection(f"127.0.0.1:{serving.port}", name, Profile("small", len(item.examples)))
        agent.run(connection, item.examples)

    run = make_run(Experiment.parse(DOCUMENT, "test"))
    with Serving(run, "127.0.0.1:0", tmp_path, observers=(watch,), figures=(), web=WebConfig("127.0.0.1:0")) as serving:
        assert "diastole_devices" not in scraped(serving)
        agents = [threading.Thread(target=join, args=(name,)) for name in federation.devices]
        for thread in agents:
            thread.start()
        result = serving.wait(60)
        for thread in agents:
            thread.join(20)
    text = serving.metrics()[0].decode()
    after = samples(text)
    (first,) = during
    assert first["diastole_runs"][labels(state="running")] == 1
    assert first["diastole_connections"][labels()] == 2
    assert sum(first["diastole_devices"].values()) == 2
    assert {dict(key)["tier"] for key in first["diastole_devices"]} == {"small"}
    assert first["diastole_updates_total"][labels(outcome="accepted")] == 2
    assert after["diastole_updates_total"][labels(outcome="accepted")] == 4
    assert after["diastole_runs"][labels(state="over")] == 1
    assert after["diastole_rounds_total"][labels(outcome="closed")] == 2
    moved = sum(closed.bytes_down for closed in result.rounds)
    assert after["diastole_payload_bytes_total"][labels(direction="down")] == moved > 0
    assert after["diastole_phase_seconds_count"][labels(phase="fold")] == 2
    assert after["diastole_round_seconds_count"][labels()] == 2
    buckets = [value for key, value in after["diastole_round_seconds_bucket"].items()]
    assert buckets == sorted(buckets)
    assert after["diastole_score"][labels(metric="accuracy")] == result.rounds[-1].accuracy
    assert after["diastole_memory_bytes"][labels(kind="resident")] > 1e6
    assert after["diastole_last_round_timestamp_seconds"][labels()] > after["diastole_start_time_seconds"][labels()]
    assert not [name for name in federation.devices if name in text]
    assert set(re.findall(r"# HELP diastole_(\w+)", text)) >= METRICS


def test_what_goes_wrong_is_counted_by_kinds_of_which_there_are_few() -> None:
    tally = Tally()
    assert {
        reason: kind_of(reason)
        for reason in (
            "update for unknown task 'x'",
            "upload for 'x': more than the 3 bytes announced",
            "tensor 'a' has values that are not finite",
            "tensor 'a' is 1e+9 away from what was sent; at most 1e+6 is accepted",
            "update changes values by 3 (root mean square), 100 times the median",
            "tensor 'a' is missing",
            "update counts 7 examples; the device announced 5",
            "not a payload of safetensors",
        )
    } == {
        "update for unknown task 'x'": "unknown task",
        "upload for 'x': more than the 3 bytes announced": "upload",
        "tensor 'a' has values that are not finite": "not finite",
        "tensor 'a' is 1e+9 away from what was sent; at most 1e+6 is accepted": "too far",
        "update changes values by 3 (root mean square), 100 times the median": "too far",
        "tensor 'a' is missing": "tensors",
        "update counts 7 examples; the device announced 5": "report",
        "not a payload of safetensors": "payload",
    }
    back = "the updates of 3 of 4 devices were quarantined; back to the model before the last round that counted"
    for event in (
        UpdateQuarantined(1, "one", "tensor 'a' is missing"),
        TaskDeclined(1, "two", "memory", "too little"),
        DevicesMoved(1, (Move("three", "late", 0.0), Move("four", "training", 0.0))),
        RoundClosed(1, 0, back, None, {}, 5, 7, 1.0),
        RoundClosed(2, 0, "1 of 4 devices delivered; the quorum is 2", None, {}, 5, 7, 1.0),
        RunFinished(2, False, failed="no round counted"),
    ):
        tally(event)
    assert tally.updates == {"quarantined": 1, "declined": 1, "late": 1}
    assert tally.rounds == {"rolled back": 1, "abandoned": 1}
    assert (tally.bytes, tally.failures) == ({"down": 10, "up": 14}, 1)


def names_in(expressions: list[str]) -> set[str]:
    """Return the metrics that are named, without what histograms and the text's format add."""
    found = {name for text in expressions for name in re.findall(rf"\b{PREFIX}(\w+)", text)}
    return {re.sub(r"(_seconds)_(bucket|sum|count)$", r"\1", name) for name in found}


def test_alerts_and_the_grafana_dashboard_name_metrics_that_there_are() -> None:
    alerts = YAML(typ="safe", pure=True).load(PACKAGING / "prometheus" / "alerts.yml")
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)
    used = names_in([rule["expr"] for rule in rules])
    assert used
    assert used <= METRICS
    board = json.loads((PACKAGING / "grafana" / "diastole.json").read_text())
    shown = names_in([target["expr"] for panel in board["panels"] for target in panel["targets"]])
    assert shown <= METRICS
    assert METRICS - shown <= {"info", "start_time_seconds", "run_failures_total", "declined_total"}
