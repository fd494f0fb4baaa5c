"""A coordinator's own machine: its state folder, its database, its ports, and whether it answers."""

import contextlib
import errno
import os
import resource
import shutil
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diastole.cli.calling import TOKEN_FILE, calling
from diastole.cli.doctor import certificates
from diastole.cli.doctor.finding import Finding, fault, ok, warning
from diastole.cli.sizes import megabytes
from diastole.proto.address import Address
from diastole.proto.errors import DiastoleError
from diastole.proto.locks import LOCK, lock_folder
from diastole.proto.missing import needed
from diastole.proto.words import plain
from diastole.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from sqlalchemy import Connection

SECONDS = 5.0
LEAST_FREE, FEW_FREE = 200e6, 2e9
"""Free bytes of the disk that are too few, and that are few."""
DESCRIPTORS = 4096
"""Open files that a process should be allowed, or few devices can be connected."""
SECRETS = ("admin.token", "view.token", "web.token", "ca/ca.key")
DATABASE = "coordinator.sqlite"
MOST_RUNS = 100


class DatabaseError(DiastoleError):
    """A database that cannot be read."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Coordinator:
    """How a coordinator is, or would be, served.

    Attributes:
        state: its folder.
        listen: where devices call.
        admin: where operators call.
        enroll: where devices enroll; empty for nowhere.
        web: where browsers call; likewise.
        database: its URL; empty for a file in the folder.
        certificate: its own, PEM, with `key`; None if it makes one itself.
        key: likewise.
        token_file: shows who asks; by default that in the folder.

    """

    state: Path
    listen: str = "127.0.0.1:7700"
    admin: str = "127.0.0.1:7701"
    enroll: str = ""
    web: str = ""
    database: str = ""
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path = TOKEN_FILE


def check(coordinator: Coordinator) -> Iterator[Finding]:
    """Look at a coordinator's machine, whether it runs or not."""
    state = coordinator.state
    running = False
    if not state.is_dir():
        why = "a coordinator makes it at its first start" if not state.exists() else "a folder is accepted"
        todo = "give the folder of `serve --state`, or start the coordinator"
        yield (warning if not state.exists() else fault)("state folder", f"{state} is not there", why, todo)
    else:
        yield _writable(state)
        yield _disk(state)
        yield from _secrets(state)
        found, running = _lock(state)
        yield found
        yield _database(coordinator)
        yield from _authority(state)
    if coordinator.certificate is not None and coordinator.key is not None:
        yield certificates.pair(coordinator.certificate, coordinator.key)
        if coordinator.certificate.is_file():
            yield certificates.life("tls-cert", coordinator.certificate.read_bytes(), "renew it at its authority")
    yield from _ports(coordinator, running=running)
    yield _descriptors()
    if running:
        yield from _answers(coordinator)


def _writable(state: Path) -> Finding:
    if os.access(state, os.W_OK | os.X_OK | os.R_OK):
        return ok("state folder", f"{state} can be written")
    owner = state.stat().st_uid
    why = f"it belongs to user {owner}, and this is user {os.geteuid()}"
    return fault("state folder", f"{state} cannot be written", why, f"chown it, or run as user {owner}")


def _disk(state: Path) -> Finding:
    found = shutil.disk_usage(state)
    text = f"{megabytes(found.free)} free of {megabytes(found.total)} at {state}"
    why = "updates and checkpoints are kept there; when it is full, no update is taken"
    todo = "free some, or move the folder; runs/ has what old runs came to"
    if found.free < LEAST_FREE:
        return fault("disk", text, why, todo)
    return warning("disk", text, why, todo) if found.free < FEW_FREE else ok("disk", text)


def _secrets(state: Path) -> Iterator[Finding]:
    for name in SECRETS:
        path = state / name
        with contextlib.suppress(OSError):
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                why = "whoever reads it can steer the coordinator, or be it"
                yield fault("secrets", f"{path} can be read by other users", why, f"chmod 600 {path}")


def _lock(state: Path) -> tuple[Finding, bool]:
    """Say whether a coordinator has the folder, and whether it does."""
    if not (state / LOCK).exists():
        return ok("lock", "no coordinator has been here"), False
    try:
        lock = lock_folder(state)
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        return fault("lock", "cannot be looked at", why, "run this as the user of the coordinator"), False
    if lock is None:
        return ok("lock", "a coordinator is at work in this folder"), True
    lock.close()
    return ok("lock", "free: no coordinator is at work in this folder"), False


def _database(coordinator: Coordinator) -> Finding:
    if not coordinator.database and not (coordinator.state / DATABASE).exists():
        return ok("database", "not there yet")
    try:
        with _reading(coordinator) as connection:
            name = connection.dialect.name
            check = "PRAGMA quick_check(1)" if name == "sqlite" else "SELECT 1"
            found = connection.exec_driver_sql(check).scalar()
    except DatabaseError as error:
        todo = "start the database, mend --database, or put back a backup of the folder"
        return fault("database", "cannot be opened", str(error), todo)
    if name == "sqlite" and found != "ok":
        todo = "stop the coordinator, and put back a backup of the folder"
        return fault("database", "is damaged", plain(str(found)), todo)
    return ok("database", f"{name}: can be read")


def runs_of(coordinator: Coordinator) -> list[dict[str, Any]] | str:
    """Return the runs that the coordinator's database knows, the latest first; or why it cannot be asked."""
    if not coordinator.database and not (coordinator.state / DATABASE).exists():
        return "not there yet"
    try:
        with _reading(coordinator) as connection:
            from diastole.server.store.tables import RUNS

            rows = connection.execute(RUNS.select().order_by(RUNS.c.number.desc()).limit(MOST_RUNS))
            return [{"run": row.run_id, "state": str(row.state), "closed": row.closed} for row in rows]
    except DatabaseError as error:
        return str(error)


@contextlib.contextmanager
def _reading(coordinator: Coordinator) -> "Iterator[Connection]":
    """Open the database and change nothing. Raises `DatabaseError` in one line, without a password."""
    with needed(DatabaseError, "", "SQLAlchemy", "diastole[coordinator]"):
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError
    path = (coordinator.state / DATABASE).absolute()
    try:
        engine = create_engine(coordinator.database or f"sqlite:///file:{path}?mode=ro&uri=true")
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise DatabaseError(plain(str(getattr(error, "orig", None) or error))) from None


def _authority(state: Path) -> Iterator[Finding]:
    certificate = state / "ca" / "ca.pem"
    if certificate.is_file():
        todo = "stop the coordinator, move ca/ away, and let all devices enroll anew"
        yield certificates.life("coordinator's authority", certificate.read_bytes(), todo)


def _ports(coordinator: Coordinator, *, running: bool) -> Iterator[Finding]:
    asked = {"devices": coordinator.listen, "operators": coordinator.admin}
    asked |= {name: text for name, text in (("enrollment", coordinator.enroll), ("dashboard", coordinator.web)) if text}
    for name, text in asked.items():
        where = Address.parse(text, listening=True)
        if where.port:
            yield _served(name, where) if running else _free(name, where)


def _free(name: str, where: Address) -> Finding:
    """Say whether a coordinator could listen there."""
    check = f"port of {name}"
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((where.host, where.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                todo = (
                    f"end it (ss -ltnp 'sport = :{where.port}' says what it is), or give the coordinator another port"
                )
                return fault(check, f"{where} is taken", "another program listens there", todo)
            todo = "give an address of this machine, or 0.0.0.0 for all; ports below 1024 need rights"
            return fault(check, f"{where} cannot be listened on", error.strerror or str(error), todo)
    return ok(check, f"{where} is free")


def _served(name: str, where: Address) -> Finding:
    check = f"port of {name}"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(where.host, where.host)  # noqa: S104 (a comparison)
    try:
        with socket.create_connection((host, where.port), SECONDS):
            return ok(check, f"{where} is open")
    except OSError as error:
        todo = "give doctor the addresses that the coordinator was started with"
        return fault(check, f"nobody listens at {where}", error.strerror or str(error), todo)


def _descriptors() -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= DESCRIPTORS:
        return ok("open files", "as many as are needed" if hard == resource.RLIM_INFINITY else f"{hard} at most")
    why = "each device that is connected takes one"
    return warning("open files", f"{hard} at most", why, "raise LimitNOFILE of the unit, or `ulimit -Hn`")


def _answers(coordinator: Coordinator) -> Iterator[Finding]:
    """Ask the coordinator that runs for its runs and devices."""
    own = coordinator.state / TOKEN_FILE.name
    token = own if coordinator.token_file == TOKEN_FILE and own.is_file() else coordinator.token_file
    try:
        with calling(coordinator.admin, token) as stub:
            runs = stub.ListRuns(pb.ListRunsRequest(), timeout=SECONDS).runs
            devices = stub.ListDevices(pb.ListDevicesRequest(), timeout=SECONDS).devices if runs else []
    except (DiastoleError, ssl.SSLError) as error:
        todo = "give doctor --admin and --token-file as the coordinator says them at its start"
        yield fault("coordinator", "does not answer operators", str(error), todo)
        return
    yield ok("coordinator", f"answers: {len(runs)} runs, {len(devices)} devices")
    mine = version("diastole")
    others = sorted({plain(each.profile.agent_version) for each in devices} - {mine, ""})
    if others:
        why = f"agents have {', '.join(others[:4])}, the coordinator {mine}"
        todo = "that works as long as the protocol is the same; update the older ones when you can"
        yield warning("versions", "differ", why, todo)
    lost = [each.name for each in devices if each.state == pb.Device.STATE_LOST]
    if lost and 2 * len(lost) > len(devices):
        why = f"{len(lost)} of {len(devices)} have not been heard of for a lease: {', '.join(lost[:4])}"
        yield warning("devices", "most are lost", why, "run `diastole doctor --coordinator ADDRESS` on one of them")
