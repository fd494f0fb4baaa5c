"""What an operator's programs read from `diastole admin --json`."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from federations import federation
from printed import check_printed
from steered import Steered

from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.proto.profile import Profile
from diastole.server.events import RunFinished, RunStarted, UpdateAccepted
from diastole.server.security.access_service import AccessService
from diastole.server.security.audit import Audit
from diastole.server.store.decisions import Decisions
from diastole.server.store.labels import Labels
from diastole.server.store.memory import MemoryStore
from diastole.server.wire.admin_service import AdminServer, AdminService
from diastole.server.wire.event_log import EventLog
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.listed import ListedRun
from diastole.server.wire.round_service import RoundService

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def link() -> Iterator[GrpcLink]:
    made = federation()
    with closing(GrpcLink("127.0.0.1:0", "run", made.model, schema_hash(initial_state(made.model, 0)))) as link:
        yield link


@pytest.fixture
def operators(tmp_path: Path, link: GrpcLink) -> Iterator[tuple[str, EventLog]]:
    """The admin address of a coordinator that waits for its devices, and the log its events go to."""
    log = EventLog()
    coordinator, store = federation().run.coordinator(link), MemoryStore()
    listed = ListedRun("run", "width", 1, tmp_path, Steered(coordinator), log, coordinator, link)
    labels = Labels(store, "place")
    service = AdminService([listed], link.sessions, labels=labels)
    decisions = Decisions(store, "place")
    decisions.begin("run", coordinator.suspensions)
    access = AccessService(Audit("place", store), None, decisions, labels=labels)
    rounds = RoundService([listed], store)
    with closing(AdminServer("127.0.0.1:0", service, access, rounds=rounds)) as server:
        yield f"127.0.0.1:{server.port}", log


def test_an_operator_on_the_coordinators_machine_goes_through_no_proxy(
    run: Run, operators: tuple[str, EventLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert run("admin", "runs", "list", "--address", operators[0])[0] == 0


def test_a_watched_event_keeps_its_number_its_time_and_its_kind(run: Run, operators: tuple[str, EventLog]) -> None:
    address, log = operators
    log(RunStarted("width", 1, ("one",)))
    log(UpdateAccepted(1, "one", "width-1", examples=10, loss=0.5, seconds=1e6))
    log(RunFinished(1, stopped=False))
    code, out, err = run("admin", "runs", "watch", "--address", address, "--json")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["number"], line["kind"]) for line in lines] == [
        (1, "run_started"),
        (2, "update_accepted"),
        (3, "run_finished"),
    ]
    assert 0 <= lines[0]["seconds"] <= lines[1]["seconds"] <= lines[2]["seconds"] < 1e6
    update = {"round": 1, "device": "one", "spec": "width-1", "examples": 10, "loss": 0.5, "seconds": 1e6}
    assert lines[1]["event"] == update


def test_an_operator_suspends_and_releases_a_device(run: Run, link: GrpcLink, operators: tuple[str, EventLog]) -> None:
    link.sessions.join("pi", Profile("small", 5))

    def admin(*words: str) -> tuple[int, str, str]:
        return run("admin", *words, "--address", operators[0])

    def explained() -> list[str]:
        return admin("devices", "explain", "pi")[1].splitlines()

    fitting = [True, False]
    assert [": fits (" in line for line in explained()] == fitting
    assert admin("devices", "suspend", "pi", "--reason", "its disk fails")[::2] == (0, "")
    reason = "it is suspended until it is released: its disk fails"
    assert all(f"does not fit: {reason} (" in line for line in explained())
    assert "kept out" in admin("devices", "list")[1]
    (device,) = json.loads(admin("devices", "list", "--json")[1])
    assert device["kept_out"] == reason
    assert admin("devices", "release", "pi")[::2] == (0, "")
    assert [": fits (" in line for line in explained()] == fitting
    assert "kept out" not in admin("devices", "list")[1]
    code, _, err = admin("devices", "release", "pi")
    assert code != 0
    assert err == f"error: {operators[0]}: device 'pi' is not suspended\n"
    assert admin("devices", "suspend", "no name")[0] != 0


def test_an_operator_reads_why_a_device_is_given_nothing(
    run: Run, link: GrpcLink, operators: tuple[str, EventLog]
) -> None:
    link.sessions.join("tiny", Profile("small", 5, memory=1000))
    code, out, err = run("admin", "devices", "explain", "tiny", "--address", operators[0])
    assert (code, err) == (0, "")
    assert all("does not fit: it takes" in line and "seconds unknown" in line for line in out.splitlines())
    code, out, err = run("admin", "devices", "explain", "tiny", "--address", operators[0], "--json")
    assert code == 0
    assert {fit["fits"] for fit in json.loads(out)} == {False}
    assert json.loads(run("admin", "devices", "list", "--address", operators[0], "--json")[1])[0]["name"] == "tiny"
    assert "'nobody'" in run("admin", "devices", "explain", "nobody", "--address", operators[0])[2]


def test_labels_are_set_shown_and_taken_away(run: Run, link: GrpcLink, operators: tuple[str, EventLog]) -> None:
    def admin(*words: str) -> tuple[int, str, str]:
        return run("admin", "devices", *words, "--address", operators[0])

    link.sessions.join("pi", Profile("small", 5))
    assert admin("label", "pi", "room=kitchen", "owner=ann")[:2] == (0, "pi: owner=ann room=kitchen\n")
    assert admin("label", "pi", "room=cellar", "owner=")[:2] == (0, "pi: room=cellar\n")
    assert json.loads(admin("show", "pi", "--json")[1])["labels"] == {"room": "cellar"}
    assert "room=cellar" in admin("show", "pi")[1]
    for words in (
        ("label", "pi", "a=b"),
        ("list",),
        ("show", "pi"),
        ("explain", "pi"),
        ("suspend", "pi"),
        ("release", "pi"),
    ):
        check_printed(("devices", *words), json.loads(admin(*words, "--json")[1]))
    assert admin("label", "pi", "a=")[0] == 0
    assert admin("label", "pi", "room=two words")[0] == 4
    assert admin("label", "pi", "room")[0] == 2
    assert admin("label", "pi", "room=")[:2] == (0, "pi: no labels\n")


def test_what_cannot_be_taken_back_is_asked_for(run: Run, operators: tuple[str, EventLog]) -> None:
    code, out, err = run("admin", "runs", "stop", "--address", operators[0])
    assert (code, out) == (2, "")
    assert err == "error: End the run for good? Nobody can be asked here; --yes does it without asking\n"


def test_rounds_and_checkpoints_that_are_not_there(run: Run, operators: tuple[str, EventLog]) -> None:
    def admin(*words: str) -> tuple[int, str, str]:
        return run("admin", *words, "--address", operators[0])

    assert admin("rounds", "list")[:2] == (0, "no round is closed\n")
    assert admin("checkpoints", "list")[:2] == (0, "no checkpoint is kept\n")
    assert admin("rounds", "show", "3")[::2] == (4, f"error: {operators[0]}: run run has no round 3\n")
    for words in (("pull",), ("rollback", "--round", "1", "--yes")):
        code, _, err = admin("checkpoints", *words)
        assert code == 4
        assert "no checkpoint is kept" in err or "not under way" in err
