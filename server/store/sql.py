"""A store in a database, through SQLAlchemy Core: SQLite by default, or any other that SQLAlchemy has a driver for."""

import threading
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from diastole.server.errors import StoreError
from diastole.server.store.grouped import Grouped
from diastole.server.store.store import (
    KEPT_AUDITS,
    KEPT_DETAILS,
    KEPT_ROUNDS,
    Assigned,
    Audited,
    Outcome,
    Present,
    Queued,
    Recorded,
    RoundRow,
    RunRow,
    RunState,
    Settled,
)
from diastole.server.store.tables import (
    ASSIGNMENTS,
    AUDIT,
    DEVICES,
    HISTORY,
    NOTES,
    QUEUES,
    ROUNDS,
    RUNS,
    SUSPENDED,
    TABLES,
    VERSION,
    VERSIONS,
)

BUSY_SECONDS = 30.0


def _add_secrets(connection: sa.Connection) -> None:
    """Give devices of version 1 a key that nobody has shown, so that whoever comes first has the name."""
    # A kill may have come between the step and the note of it.
    if DEVICES.c.secret.name not in (column["name"] for column in sa.inspect(connection).get_columns(DEVICES.name)):
        connection.execute(sa.text(f"ALTER TABLE {DEVICES.name} ADD COLUMN secret VARCHAR(64) NOT NULL DEFAULT ''"))


_STEPS: dict[int, Callable[[sa.Connection], None]] = {1: _add_secrets}
"""What brings tables of a version to the next one; tables that one lacks are made in any case."""


class SqlStore:
    """A `Store` behind a database URL of SQLAlchemy's, such as `sqlite:///state/coordinator.sqlite`."""

    def __init__(self, url: str) -> None:
        """Open the database, and make the tables that it lacks or has in an earlier form. Raises `StoreError`."""
        try:
            self._shown = sa.make_url(url).render_as_string(hide_password=True)
            self._engine = sa.create_engine(url)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise StoreError(f"database {_without_password(url)!r}: {text}; a URL as SQLAlchemy takes it") from None
        self._lock = threading.Lock()
        # Each commit waits for the disk; devices that deliver at once share one.
        self._settling = Grouped(self._settle)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _durable)
        with self._begun() as connection:
            TABLES.create_all(connection)
            found = connection.scalar(sa.select(sa.func.max(VERSIONS.c.version)))
            if found is None:
                connection.execute(VERSIONS.insert().values(version=VERSION))
            elif found != VERSION:
                self._update(connection, found)

    def add_run(self, run: RunRow) -> None:
        """See `Store.add_run`."""
        self._do(
            RUNS.insert().values(
                run_id=run.run_id, place=run.place, label=run.label, state=run.state, closed=run.closed
            )
        )

    def set_run(self, run_id: str, state: RunState) -> None:
        """See `Store.set_run`."""
        steps: list[sa.Executable] = [RUNS.update().where(RUNS.c.run_id == run_id).values(state=state)]
        if state is not RunState.OPEN:
            steps.append(ASSIGNMENTS.delete().where(ASSIGNMENTS.c.run_id == run_id))
        self._do(*steps)

    def runs(self, place: str) -> list[RunRow]:
        """See `Store.runs`."""
        found = self._rows(sa.select(RUNS).where(RUNS.c.place == place).order_by(RUNS.c.number.desc()))
        return [RunRow(row.run_id, row.place, row.label, RunState(row.state), row.closed) for row in found]

    def queue(self, place: str) -> list[Queued]:
        """See `Store.queue`."""
        rows = self._rows(sa.select(QUEUES).where(QUEUES.c.place == place).order_by(QUEUES.c.number))
        return [Queued(row.run_id, row.label, row.document, row.over) for row in rows]

    def set_queue(self, place: str, queue: Sequence[Queued]) -> None:
        """See `Store.set_queue`."""
        rows = [
            {"place": place, "number": number, "run_id": each.run_id, "label": each.label}
            | {"document": each.document, "over": each.over}
            for number, each in enumerate(queue)
        ]
        with self._begun() as connection:
            connection.execute(QUEUES.delete().where(QUEUES.c.place == place))
            if rows:
                connection.execute(QUEUES.insert(), rows)

    def open_round(self, run_id: str, number: int, planner: str, assigned: Sequence[Assigned]) -> None:
        """See `Store.open_round`."""
        key = {"run_id": run_id, "number": number}
        rows = [
            key | {"device": each.device, "spec": each.spec, "levers": each.levers, "profile": each.profile}
            for each in assigned
        ]
        with self._begun() as connection:
            for table in (ASSIGNMENTS, ROUNDS):
                connection.execute(table.delete().where(table.c.run_id == run_id, table.c.number == number))
            connection.execute(ROUNDS.insert().values(planner=planner, **key))
            if rows:
                connection.execute(ASSIGNMENTS.insert(), rows)

    def settle(self, run_id: str, number: int, settled: Sequence[Settled]) -> None:
        """See `Store.settle`."""
        self._settling.put([(run_id, number, each) for each in settled])

    def _settle(self, groups: Sequence[Sequence[tuple[str, int, Settled]]]) -> None:
        """Note what came of assignments, in one transaction."""
        table = ASSIGNMENTS
        with self._begun() as connection:
            for run_id, number, each in chain(*groups):
                mine = (table.c.run_id == run_id, table.c.number == number, table.c.device == each.device)
                if each.outcome is Outcome.QUARANTINED:
                    held = table.update().where(*mine, table.c.outcome == Outcome.ACCEPTED)
                    connection.execute(held.values(outcome=each.outcome, reason=each.reason))
                values = {
                    "outcome": each.outcome,
                    "reason": each.reason,
                    "why": each.why,
                    "sha256": each.sha256,
                    "size": each.size,
                    "report": each.report,
                }
                connection.execute(table.update().where(*mine, table.c.outcome == "").values(**values))

    def round(self, run_id: str, number: int) -> RoundRow | None:
        """See `Store.round`."""
        table = ASSIGNMENTS
        with self._begun() as connection:
            opened = sa.select(ROUNDS.c.planner).where(ROUNDS.c.run_id == run_id, ROUNDS.c.number == number)
            planner = connection.scalar(opened)
            mine = sa.select(table).where(table.c.run_id == run_id, table.c.number == number)
            rows = connection.execute(mine.order_by(table.c.device)).all()
        if not rows:
            return None
        assigned = [Assigned(row.device, row.spec, row.levers, row.profile) for row in rows]
        settled = {
            row.device: Settled(row.device, Outcome(row.outcome), row.reason, row.why, row.sha256, row.size, row.report)
            for row in rows
            if row.outcome
        }
        return RoundRow(number, planner or "", assigned, settled)

    def close_round(self, run_id: str, number: int, updates: int, abandoned: str) -> None:
        """See `Store.close_round`."""
        key = {"run_id": run_id, "number": number}
        table, last = ASSIGNMENTS, number - KEPT_ROUNDS + 2
        self._do(
            ROUNDS.delete().where(ROUNDS.c.run_id == run_id, ROUNDS.c.number == number),
            ROUNDS.insert().values(updates=updates, abandoned=abandoned, **key),
            table.delete().where(table.c.run_id == run_id, table.c.number < last),
            RUNS.update().where(RUNS.c.run_id == run_id).values(closed=number),
        )

    def record(self, run_id: str, row: Recorded) -> None:
        """See `Store.record`."""
        mine, table = HISTORY.c.run_id == run_id, HISTORY
        devices = zlib.compress(row.devices.encode())
        values = {"number": row.number, "at": row.at, "closed": row.closed, "devices": devices, "undone": row.undone}
        self._do(
            table.insert().values(run_id=run_id, **values),
            table.update().where(mine, table.c.number <= row.number - KEPT_DETAILS).values(devices=None),
        )

    def records(self, run_id: str) -> list[Recorded]:
        """See `Store.records`."""
        table = HISTORY
        columns = (table.c.number, table.c.at, table.c.closed, table.c.undone)
        rows = self._rows(sa.select(*columns).where(table.c.run_id == run_id).order_by(table.c.id))
        return [Recorded(row.number, row.at, row.closed, undone=row.undone) for row in rows]

    def recorded(self, run_id: str, number: int) -> Recorded | None:
        """See `Store.recorded`."""
        mine = sa.select(HISTORY).where(HISTORY.c.run_id == run_id, HISTORY.c.number == number)
        for row in self._rows(mine.order_by(HISTORY.c.undone, HISTORY.c.id.desc()).limit(1)):
            devices = zlib.decompress(row.devices).decode() if row.devices else ""
            return Recorded(row.number, row.at, row.closed, devices, row.undone)
        return None

    def roll_back(self, run_id: str, number: int) -> None:
        """See `Store.roll_back`."""
        later = {t: (t.c.run_id == run_id, t.c.number > number) for t in (ASSIGNMENTS, ROUNDS, HISTORY)}
        self._do(
            ASSIGNMENTS.delete().where(*later[ASSIGNMENTS]),
            ROUNDS.delete().where(*later[ROUNDS]),
            HISTORY.update().where(*later[HISTORY]).values(undone=True),
            RUNS.update().where(RUNS.c.run_id == run_id).values(closed=number),
        )

    def note(self, place: str, kind: str, name: str, text: str) -> None:
        """See `Store.note`."""
        mine = (NOTES.c.place == place, NOTES.c.kind == kind, NOTES.c.name == name)
        added = [NOTES.insert().values(place=place, kind=kind, name=name, text=text)] if text else []
        self._do(NOTES.delete().where(*mine), *added)

    def notes(self, place: str, kind: str) -> dict[str, str]:
        """See `Store.notes`."""
        rows = self._rows(sa.select(NOTES).where(NOTES.c.place == place, NOTES.c.kind == kind).order_by(NOTES.c.name))
        return {row.name: row.text for row in rows}

    def meet(self, place: str, device: str, present: Present) -> None:
        """See `Store.meet`."""
        self._replace(DEVICES, place, device, profile=present.profile, secret=present.key)

    def part(self, place: str, device: str) -> None:
        """See `Store.part`."""
        self._do(DEVICES.delete().where(DEVICES.c.place == place, DEVICES.c.device == device))

    def devices(self, place: str) -> dict[str, Present]:
        """See `Store.devices`."""
        rows = self._rows(sa.select(DEVICES).where(DEVICES.c.place == place).order_by(DEVICES.c.device))
        return {row.device: Present(row.profile, row.secret) for row in rows}

    def suspend(self, place: str, device: str, reason: str) -> None:
        """See `Store.suspend`."""
        if reason:
            self._replace(SUSPENDED, place, device, reason=reason)
        else:
            self._do(SUSPENDED.delete().where(SUSPENDED.c.place == place, SUSPENDED.c.device == device))

    def suspended(self, place: str) -> dict[str, str]:
        """See `Store.suspended`."""
        rows = self._rows(sa.select(SUSPENDED).where(SUSPENDED.c.place == place).order_by(SUSPENDED.c.device))
        return {row.device: row.reason for row in rows}

    def audit(self, place: str, line: Audited) -> None:
        """See `Store.audit`."""
        values = {"at": line.at, "who": line.who, "call": line.call, "detail": line.detail, "outcome": line.outcome}
        with self._begun() as connection:
            (number,) = connection.execute(AUDIT.insert().values(place=place, **values)).inserted_primary_key or (0,)
            connection.execute(AUDIT.delete().where(AUDIT.c.number <= number - KEPT_AUDITS))

    def audited(self, place: str, most: int = 100) -> list[Audited]:
        """See `Store.audited`."""
        rows = self._rows(sa.select(AUDIT).where(AUDIT.c.place == place).order_by(AUDIT.c.number.desc()).limit(most))
        return [Audited(row.at, row.who, row.call, row.detail, row.outcome) for row in rows]

    def close(self) -> None:
        """See `Store.close`."""
        self._engine.dispose()

    def _update(self, connection: sa.Connection, found: int) -> None:
        """Bring tables of an earlier version to this one. Raises `StoreError` if they cannot be."""
        if found > VERSION or not all(version in _STEPS for version in range(found, VERSION)):
            raise StoreError(
                f"database {self._shown}: its tables are of version {found}, this diastole has {VERSION}; use the "
                "diastole that made them, or another folder or database"
            )
        for version in range(found, VERSION):
            _STEPS[version](connection)
        connection.execute(VERSIONS.update().values(version=VERSION))

    def _replace(self, table: sa.Table, place: str, device: str, **values: str) -> None:
        mine = (table.c.place == place, table.c.device == device)
        self._do(table.delete().where(*mine), table.insert().values(place=place, device=device, **values))

    def _do(self, *steps: sa.Executable) -> None:
        with self._begun() as connection:
            for step in steps:
                connection.execute(step)

    def _rows(self, query: sa.Executable) -> Sequence[Any]:
        with self._begun() as connection:
            return connection.execute(query).all()

    @contextmanager
    def _begun(self) -> Generator[sa.Connection]:
        """Run a block as one transaction, one at a time: SQLite has one writer."""
        try:
            with self._lock, self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            text = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
            raise StoreError(f"database {self._shown}: {text}") from None


def _durable(connection: Any, record: object) -> None:
    """Let SQLite keep what was committed even if the machine loses power, and wait for others who write."""
    cursor = connection.cursor()
    for words in ("journal_mode = WAL", "synchronous = FULL", f"busy_timeout = {int(1000 * BUSY_SECONDS)}"):
        cursor.execute(f"PRAGMA {words}")
    cursor.close()


def _without_password(url: str) -> str:
    """Return a URL that could not be parsed, without what may be a password."""
    return url.partition("://")[0] + "://..." if "@" in url else url
