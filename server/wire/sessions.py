"""The devices that have joined: sessions, leases and the bytes that each has moved."""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diastole.proto.profile import Profile


@dataclass(slots=True)
class Session:
    """One joined device.

    `key` is the digest of the secret by which it may take its name over again; `stream` is set while its task stream is
    open; `lost`, `left` and `paused` are final.
    `expected` is set for a device that was there before the coordinator was started again, until its stream opens.
    """

    name: str
    token: str
    profile: Profile
    seen: float
    agent_version: str = ""
    key: str = ""
    stream: object | None = None
    lost: bool = False
    left: bool = False
    paused: bool = False
    expected: bool = False
    bytes_down: int = 0
    bytes_up: int = 0

    @property
    def alive(self) -> bool:
        """True until the device leaves or its lease lapses."""
        return not (self.lost or self.left)


class Sessions:
    """Every device by name and by token; safe to use from several threads.

    A lease is renewed by any call that carries the token. `clock` gives seconds and only ever grows.
    """

    def __init__(self, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease = lease
        self._clock = clock
        self._by_name: dict[str, Session] = {}
        self._by_token: dict[str, Session] = {}
        self._changed = threading.Condition()

    def join(self, name: str, profile: Profile, agent_version: str = "", key: str = "") -> Session:
        """Open a session under `name`; an earlier one under that name ends, its traffic is carried over."""
        with self._changed:
            session = Session(name, secrets.token_urlsafe(24), profile, self._clock(), agent_version, _digest(key))
            before = self._by_name.get(name)
            if before is not None:
                self._by_token.pop(before.token, None)
                before.left = True
                session.bytes_down, session.bytes_up = before.bytes_down, before.bytes_up
                session.expected = before.expected and not before.lost
            self._by_name[name] = self._by_token[session.token] = session
            self._changed.notify_all()
            return session

    def expect(self, name: str, profile: Profile) -> None:
        """Let a device be there that joined an earlier coordinator; its lease begins now."""
        with self._changed:
            session = Session(name, secrets.token_urlsafe(24), profile, self._clock(), expected=True)
            self._by_name[name] = self._by_token[session.token] = session

    def may_join(self, name: str, key: str) -> bool:
        """Return whether nobody is online under `name`, or whoever is has joined with the same `key`."""
        with self._changed:
            before = self._by_name.get(name)
            # A coordinator that is started again does not know the keys of those that it expects.
            if before is None or not before.alive or (before.expected and not before.key):
                return True
            return bool(before.key) and secrets.compare_digest(before.key, _digest(key))

    def find(self, token: str) -> Session | None:
        """Return a token's session, without renewing its lease; None if it is not known or has lapsed."""
        with self._changed:
            session = self._by_token.get(token)
            return session if session is not None and session.alive else None

    def touch(self, token: str) -> Session | None:
        """Renew the lease of a token's session and return it; None if the token is not known or has lapsed."""
        with self._changed:
            session = self._by_token.get(token)
            if session is None or not session.alive:
                return None
            session.seen = self._clock()
            return session

    def connect(self, session: Session, stream: object | None) -> None:
        """Note that the task stream is open, or closed with `None`."""
        with self._changed:
            session.stream = stream
            session.expected = session.expected and stream is None
            self._changed.notify_all()

    def pause(self, session: Session) -> None:
        """Give the device no task until it joins again."""
        with self._changed:
            session.paused = True

    def leave(self, session: Session) -> None:
        """End a session at the device's wish."""
        with self._changed:
            session.left = True
            self._by_token.pop(session.token, None)
            self._changed.notify_all()

    def lapse(self) -> list[Session]:
        """End and return the sessions whose lease has run out."""
        with self._changed:
            oldest = self._clock() - self.lease
            lapsed = [s for s in self._by_name.values() if s.alive and s.seen < oldest]
            for session in lapsed:
                session.lost = True
                self._by_token.pop(session.token, None)
            self._changed.notify_all()
            return lapsed

    def moved(self, session: Session, *, bytes_down: int = 0, bytes_up: int = 0) -> None:
        """Count payload bytes."""
        with self._changed:
            session.bytes_down += bytes_down
            session.bytes_up += bytes_up

    def ready(self) -> Mapping[str, Session]:
        """Return the sessions that can be given a task: alive, not paused, with an open task stream."""
        with self._changed:
            found = self._by_name.items()
            return {name: s for name, s in found if s.alive and not s.paused and s.stream is not None}

    def all(self) -> Mapping[str, Session]:
        """Return the latest session of every name."""
        with self._changed:
            return dict(self._by_name)

    def idle(self, session: Session) -> float:
        """Return the seconds since the session's last call."""
        return self._clock() - session.seen

    def wait(self, count: int, seconds: float, stopped: Callable[[], bool]) -> bool:
        """Wait until `count` sessions are ready; False after `seconds`, or once `stopped()` after a `wake`.

        Expected devices are waited for too, for a lease at most.
        """
        with self._changed:
            self._changed.wait_for(lambda: stopped() or not any(map(_away, self._by_name.values())), self.lease)
            for session in self._by_name.values():
                session.expected = False
            return self._changed.wait_for(lambda: stopped() or len(self.ready()) >= count, seconds) and not stopped()

    def wake(self) -> None:
        """Let every waiting caller check again."""
        with self._changed:
            self._changed.notify_all()


def _away(session: Session) -> bool:
    return session.expected and session.alive and session.stream is None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest() if key else ""
