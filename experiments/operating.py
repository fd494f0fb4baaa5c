"""The port at which operators look at a coordinator and steer it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diastole.experiments.home import Home
from diastole.proto.address import is_loopback
from diastole.server.observe.recent import LogService, Recent
from diastole.server.security.access_service import AccessService
from diastole.server.security.audit import Audit
from diastole.server.security.operators import ADMIN_TOKEN, Operators, admin_token, by_token
from diastole.server.store.decisions import Decisions
from diastole.server.wire.admin_service import AdminServer, AdminService
from diastole.server.wire.hub import Hub
from diastole.server.wire.listed import ListedRun
from diastole.server.wire.round_service import RoundService

if TYPE_CHECKING:
    from diastole.server.security.security import Security


def operated(
    address: str,
    runs: Sequence[ListedRun],
    home: Home,
    hub: Hub,
    audit: Audit,
    decisions: Decisions,
    security: "Security | None",
    submit: Callable[[str, bool], ListedRun],
    *,
    recent: Recent,
    reflection: bool,
) -> AdminServer:
    """Serve operators at `host:port`.

    Args:
        address: where; off loopback only with `security`.
        runs: of the coordinator; they may change.
        home: where they are kept.
        hub: of the devices.
        audit: of what operators ask for.
        decisions: which devices are kept out.
        security: the coordinator's own authority; None for none.
        submit: puts a run into the queue.
        recent: the latest lines of the log.
        reflection: let the services describe themselves.

    Raises `AddressError`, and `FolderError`.

    """
    token = home.folder.path / ADMIN_TOKEN
    enrollment = security.enrollment if security else None
    if security and not is_loopback(address):
        operators, credentials = security.operators(token), security.credentials
    else:
        operators, credentials = Operators(by_token(admin_token(token)), audit), None
    return AdminServer(
        address,
        AdminService(runs, hub.sessions, submit, home.labels),
        AccessService(audit, enrollment, decisions, hub.dismiss, home.labels),
        operators,
        credentials,
        rounds=RoundService(runs, home.store),
        logs=LogService(recent),
        reflection=reflection,
    )
