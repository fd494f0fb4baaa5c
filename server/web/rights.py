"""Who may look at the dashboard, and who may act there: by token, by session, or by certificate."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from diastole.proto.errors import DiastoleError
from diastole.server.security.audit import Note
from diastole.server.security.operators import operator_of
from diastole.server.wire.identity import Gate, Shown, StrangerError

SESSION_SECONDS, MOST_SESSIONS = 12 * 3600.0, 200
"""Without a call, after which a session ends; of more sessions the oldest goes."""
LONGEST_TOKEN = 400


class Role(StrEnum):
    """What somebody may do."""

    READER = "reader"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Who:
    """Somebody who has logged in."""

    name: str
    role: Role


class LoginError(DiastoleError):
    """A token that is nobody's."""


class Rights:
    """Knows tokens, certificates and sessions; safe to use from several threads."""

    def __init__(
        self,
        operator: str,
        reader: str = "",
        gate: Gate | None = None,
        note: Note = lambda who, call, detail, outcome, *, stranger=False: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know who is who.

        Args:
            operator: the token of operators.
            reader: the token of those who may only look; empty for none.
            gate: holds certificates against names; None if none are asked for.
            note: writes down who has logged in and what was done.
            clock: in seconds.

        """
        tokens = {operator: Role.OPERATOR, reader: Role.READER}
        self._tokens = {_hash(token): role for token, role in tokens.items() if token}
        self._gate, self.note, self._clock = gate, note, clock
        self._sessions: OrderedDict[str, tuple[Who, float]] = OrderedDict()
        self._lock = threading.Lock()

    def login(self, token: str, peer: str) -> tuple[str, Who]:
        """Return the secret of a new session. Raises `LoginError`."""
        role = self._role(token)
        if role is None:
            self.note(peer, "Login", "dashboard", "refused: no token of this coordinator", stranger=True)
            raise LoginError("this is no token of this coordinator")
        secret, who = secrets.token_urlsafe(32), Who(f"{role} at {peer}", role)
        with self._lock:
            self._sessions[_hash(secret)] = who, self._clock() + SESSION_SECONDS
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        self.note(who.name, "Login", "dashboard", "done")
        return secret, who

    def logout(self, secret: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(_hash(secret), None)

    def who(self, secret: str, bearer: str, shown: Shown, peer: str) -> Who | None:
        """Return who calls: by a session's secret, a token that the call carries, or the certificate that it shows."""
        key, now = _hash(secret), self._clock()
        with self._lock:
            found, until = self._sessions.get(key, (None, 0.0))
            if found is not None and until > now:
                self._sessions[key] = found, now + SESSION_SECONDS
                return found
        if bearer and (role := self._role(bearer)) is not None:
            return Who(f"{role} at {peer}", role)
        return self._certified(shown)

    def _certified(self, shown: Shown) -> Who | None:
        name = operator_of(shown)
        try:
            proved = self._gate is not None and self._gate.check(name, shown)
        except StrangerError:
            proved = False
        return Who(name, Role.OPERATOR) if proved else None

    def _role(self, token: str) -> Role | None:
        # Of digests, so that the time of a look-up tells nothing of the token.
        return self._tokens.get(_hash(token)) if 0 < len(token) <= LONGEST_TOKEN else None


def _hash(text: str) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()
