"""One suite for every store: in memory, SQLite, and PostgreSQL where a server is at hand."""

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from diastole.server.errors import StoreError
from diastole.server.store import store as stores
from diastole.server.store.memory import MemoryStore
from diastole.server.store.sql import SqlStore
from diastole.server.store.store import (
    Assigned,
    Audited,
    Outcome,
    Present,
    Queued,
    Recorded,
    RunRow,
    RunState,
    Settled,
    Store,
)
from diastole.server.store.tables import VERSION

POSTGRES = "DIASTOLE_TEST_POSTGRES"
PLAN = [Assigned(name, '{"label": "w1"}', "", "{}") for name in ("a", "b", "c")]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "postgresql" and POSTGRES not in os.environ:
        pytest.skip(f"{POSTGRES} names no database")
    made: Store = MemoryStore()
    if request.param == "sqlite":
        made = SqlStore(f"sqlite:///{tmp_path / 'test.sqlite'}")
    elif request.param == "postgresql":
        made = SqlStore(os.environ[POSTGRES])
    with closing(made):
        yield made


@pytest.fixture
def place() -> str:
    """A state folder of this test alone: databases outlive a test."""
    return uuid.uuid4().hex


@pytest.fixture
def run(store: Store, place: str) -> str:
    run_id = uuid.uuid4().hex[:12]
    store.add_run(RunRow(run_id, place, "label"))
    return run_id


def accepted(device: str, sha256: str = "5" * 64) -> Settled:
    return Settled(device, Outcome.ACCEPTED, sha256=sha256, size=3 << 32, report='{"loss": NaN}')


def test_runs_of_a_folder_are_told_apart_by_how_far_they_are(store: Store, place: str, run: str) -> None:
    store.add_run(RunRow("second" + run, place, "other"))
    store.add_run(RunRow("third" + run, uuid.uuid4().hex, "elsewhere"))
    store.set_run(run, RunState.FINISHED)
    assert store.runs(place) == [
        RunRow("second" + run, place, "other"),
        RunRow(run, place, "label", RunState.FINISHED),
    ]


def test_a_round_is_as_it_was_opened_with_what_came_since(store: Store, run: str) -> None:
    assert store.round(run, 1) is None
    store.open_round(run, 1, '{"a": 2.0}', PLAN)
    found = store.round(run, 1)
    assert found is not None
    assert (found.number, found.planner, list(found.assigned), dict(found.settled)) == (1, '{"a": 2.0}', PLAN, {})
    lost = Settled("b", Outcome.LOST, "not heard of for 30 s")
    store.settle(run, 1, [accepted("a"), lost])
    store.settle(run, 1, [Settled("c", Outcome.DECLINED, "no memory", "memory")])
    found = store.round(run, 1)
    assert found is not None
    assert dict(found.settled) == {
        "a": accepted("a"),
        "b": lost,
        "c": Settled("c", Outcome.DECLINED, "no memory", "memory"),
    }


def test_the_first_outcome_holds_but_what_was_accepted_may_be_quarantined(store: Store, run: str) -> None:
    store.open_round(run, 1, "", PLAN)
    store.settle(run, 1, [accepted("a"), Settled("b", Outcome.LOST, "gone"), accepted("nobody")])
    bad = Settled("a", Outcome.QUARANTINED, "not finite")
    store.settle(run, 1, [accepted("a", "6" * 64), accepted("b"), Settled("a", Outcome.LOST, "gone"), bad])
    found = store.round(run, 1)
    assert found is not None
    assert {name: (each.outcome, each.reason, each.sha256) for name, each in found.settled.items()} == {
        "a": (Outcome.QUARANTINED, "not finite", "5" * 64),
        "b": (Outcome.LOST, "gone", ""),
    }


def test_a_round_that_is_opened_again_begins_anew(store: Store, run: str) -> None:
    store.open_round(run, 1, "", PLAN)
    store.settle(run, 1, [accepted("a")])
    store.open_round(run, 1, "", PLAN[1:])
    found = store.round(run, 1)
    assert found is not None
    assert (list(found.assigned), dict(found.settled)) == (PLAN[1:], {})


def test_assignments_are_forgotten_but_for_the_last_rounds(store: Store, place: str, run: str) -> None:
    for number in range(1, 6):
        store.open_round(run, number, "", PLAN)
        store.settle(run, number, [accepted("a")])
        kept = [each for each in range(1, number + 1) if store.round(run, each)]
        assert kept == list(range(max(1, number - stores.KEPT_ROUNDS + 1), number + 1))
        store.close_round(run, number, 1, "")
    assert store.runs(place)[0].closed == 5
    store.open_round(run, 6, "", PLAN)
    store.set_run(run, RunState.FINISHED)
    assert store.round(run, 6) is None


def test_a_queue_is_kept_in_order_and_replaced_as_a_whole(store: Store, place: str) -> None:
    queue = [Queued("b", "one", over=True), Queued("a", "two", document="{}")]
    store.set_queue(place, [Queued("c", "three")])
    store.set_queue(place, queue)
    assert store.queue(place) == queue
    assert store.queue(uuid.uuid4().hex) == []
    store.set_queue(place, [])
    assert store.queue(place) == []


def test_devices_that_are_there(store: Store, place: str) -> None:
    store.meet(place, "b", Present("{}"))
    store.meet(place, "a", Present("{}"))
    store.meet(place, "b", Present('{"tier": "small"}', "5" * 64))
    store.meet(uuid.uuid4().hex, "c", Present("{}"))
    store.part(place, "a")
    store.part(place, "nobody")
    assert store.devices(place) == {"b": Present('{"tier": "small"}', "5" * 64)}


def test_devices_are_suspended_and_released(store: Store, place: str) -> None:
    store.suspend(place, "a", "three in a row")
    store.suspend(place, "a", "four in a row")
    store.suspend(place, "b", "one")
    store.suspend(place, "b", "")
    assert store.suspended(place) == {"a": "four in a row"}
    assert store.suspended(uuid.uuid4().hex) == {}


def test_the_audit_is_read_from_its_end_and_does_not_grow_for_ever(
    store: Store, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [Audited(float(number), "ann", "Stop", "now", "done") for number in range(6)]
    if not isinstance(store, MemoryStore):
        monkeypatch.setattr("diastole.server.store.sql.KEPT_AUDITS", 4)
    for line in lines:
        store.audit(place, line)
    assert store.audited(place, 2) == [lines[5], lines[4]]
    assert len(store.audited(place)) == (6 if isinstance(store, MemoryStore) else 4)


@pytest.mark.parametrize("half", [False, True], ids=["whole", "killed in between"])
def test_tables_of_the_version_before_go_on_as_those_of_this_one(tmp_path: Path, place: str, half: bool) -> None:
    path = tmp_path / "test.sqlite"
    with closing(SqlStore(f"sqlite:///{path}")) as before:
        before.meet(place, "a", Present("{}"))
    with closing(sqlite3.connect(path)) as raw, raw:
        if not half:
            raw.execute("ALTER TABLE diastole_devices DROP COLUMN secret")
        raw.execute("UPDATE diastole_version SET version = 1")
    for _ in range(2):
        with closing(SqlStore(f"sqlite:///{path}")) as store:
            assert store.devices(place) == {"a": Present("{}")}
            store.meet(place, "a", Present("{}"))
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT version FROM diastole_version").fetchall() == [(VERSION,)]


@pytest.mark.parametrize("version", [0, VERSION + 1])
def test_tables_of_a_version_that_nobody_knows_are_left_alone_in_one_line(tmp_path: Path, version: int) -> None:
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    SqlStore(url).close()
    with closing(sqlite3.connect(tmp_path / "test.sqlite")) as raw, raw:
        raw.execute(f"UPDATE diastole_version SET version = {version}")
    words = f"its tables are of version {version}, this diastole has {VERSION}; use the diastole that made them"
    with pytest.raises(StoreError, match=words):
        SqlStore(url)


def test_what_was_noted_is_there_for_the_next_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    with closing(SqlStore(url)) as first:
        first.add_run(RunRow("one", "here", "label"))
        first.open_round("one", 1, "", PLAN)
        first.settle("one", 1, [accepted("a")])
    with closing(SqlStore(url)) as second:
        assert second.runs("here") == [RunRow("one", "here", "label")]
        found = second.round("one", 1)
        assert found is not None
        assert dict(found.settled) == {"a": accepted("a")}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "nonsense"),
        ("nosuch://ann:secret@host/db", "nosuch"),
        ("sqlite:////nowhere/at/all/x.sqlite", "unable to open"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_without_a_password(url: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        SqlStore(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_history_keeps_every_round_and_the_devices_of_the_last(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sql", "memory"):
        monkeypatch.setattr(f"diastole.server.store.{module}.KEPT_DETAILS", 2)
    rows = [Recorded(number, number / 2, f'{{"round": {number}}}', f"[{number}]") for number in (1, 2, 3)]
    for row in rows:
        store.record(run, row)
    assert store.records(run) == [replace(row, devices="") for row in rows]
    assert [store.recorded(run, number) for number in (1, 2, 3, 4)] == [replace(rows[0], devices=""), *rows[1:], None]


def test_a_run_that_is_rolled_back_forgets_later_rounds_and_remembers_that_they_were(store: Store, run: str) -> None:
    for number in (1, 2, 3):
        store.open_round(run, number, "{}", PLAN)
        store.close_round(run, number, 3, "")
        store.record(run, Recorded(number, 0.0, "{}"))
    store.open_round(run, 4, "{}", PLAN)
    for _ in range(2):
        store.roll_back(run, 2)
    assert [(each.number, each.undone) for each in store.records(run)] == [(1, False), (2, False), (3, True)]
    assert [store.round(run, number) is None for number in (3, 4)] == [True, True]
    store.record(run, Recorded(3, 1.0, "again"))
    (found,) = [store.recorded(run, 3)]
    assert found is not None
    assert (found.closed, found.undone) == ("again", False)


def test_notes_are_kept_by_place_kind_and_name(store: Store, place: str) -> None:
    store.note(place, "label", "a", "{}")
    for name, text in (("b", "paused"), ("a", "held"), ("b", "held")):
        store.note(place, "held", name, text)
    assert store.notes(place, "held") == {"a": "held", "b": "held"}
    store.note(place, "held", "a", "")
    assert store.notes(place, "held") == {"b": "held"}
    assert (store.notes(place, "label"), store.notes(uuid.uuid4().hex, "held")) == ({"a": "{}"}, {})
