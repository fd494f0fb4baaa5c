"""The devices that have joined: sessions, leases and the bytes that each has moved."""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from diastole.proto.errors import DiastoleError
from diastole.proto.profile import Profile
from diastole.server.link import Traffic
from diastole.server.wire.bounds import GONE, HEARTBEATS, SESSIONS
from diastole.server.wire.pace import Pace

ALL = ""
"""In the place of a run: every device, whatever it serves."""


BEATS = 3
"""Heartbeats in a lease."""


def lease_of(least: float, sessions: int) -> float:
    """Return the seconds of a lease: `least`, or more if so many devices would send over `HEARTBEATS` a second."""
    return max(least, BEATS * sessions / HEARTBEATS)


class CrowdedError(DiastoleError):
    """More than a coordinator does at a time; whoever asks may come back later."""


@dataclass(slots=True)
class Session:
    """One joined device.

    `serves` has the runs that it takes part in, and its profile in each; `profile` is that in the first of them. `key`
    is the digest of the secret by which it may take its name over again; `stream` is set while its task stream is open;
    `lost`, `left` and `paused` are final. `moved` has the payload bytes, down and up, of each run.
    `pace` bounds its calls; `lease` has the seconds for which it may be silent. `expected` is set for a device that was
    there before the coordinator was started again, until its stream opens. `listens` is set from its first task stream
    on, `told` once it has been told that its runs are over.
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
    listens: bool = False
    told: bool = False
    serves: Mapping[str, Profile] = field(default_factory=dict)
    moved: dict[str, Traffic] = field(default_factory=dict)
    lease: float = 0.0
    stalls: int = 0
    pace: Pace | None = None

    @property
    def bytes_down(self) -> int:
        """Payload bytes that it has downloaded, in all runs."""
        return sum(each.bytes_down for each in self.moved.values())

    @property
    def bytes_up(self) -> int:
        """Likewise uploaded."""
        return sum(each.bytes_up for each in self.moved.values())

    @property
    def alive(self) -> bool:
        """True until the device leaves or its lease lapses."""
        return not (self.lost or self.left)


class Sessions:
    """Every device by name and by token; safe to use from several threads.

    A lease is `least` seconds, or more if there are very many devices; a session has the one that its device was told.
    Any call that carries the token renews it. `clock` gives seconds and only ever grows. At most `most`
    sessions live at a time; of those that have ended, the latest `gone` are remembered.
    """

    def __init__(
        self, least: float, clock: Callable[[], float] = time.monotonic, most: int = SESSIONS, gone: int = GONE
    ) -> None:
        self.least = least
        self._clock = clock
        self._most, self._most_gone = most, gone
        self._by_name: dict[str, Session] = {}
        # In the order of their last calls, so that nobody has to look at all of them.
        self._by_token: OrderedDict[str, Session] = OrderedDict()
        # By run.
        self._ready: dict[str, dict[str, Session]] = {}
        self._away: set[str] = set()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._changed = threading.Condition()

    @property
    def lease(self) -> float:
        """The seconds of a lease that is given now."""
        return lease_of(self.least, len(self._by_token))

    def join(
        self,
        name: str,
        profile: Profile,
        agent_version: str = "",
        key: str = "",
        serves: Mapping[str, Profile] | None = None,
    ) -> Session:
        """Open a session under `name`; an earlier one under that name ends, its traffic is carried over.

        `serves` has the runs that the device takes part in, and its profile in each. Raises `CrowdedError` if too many
        others are there.
        """
        with self._changed:
            before = self._by_name.get(name)
            if len(self._by_token) >= self._most and (before is None or not before.alive):
                raise CrowdedError(f"{len(self._by_token)} devices have joined; no more are taken now")
            session = Session(name, secrets.token_urlsafe(24), profile, self._clock(), agent_version, _digest(key))
            session.serves = dict(serves or {})
            if before is not None:
                self._by_token.pop(before.token, None)
                before.left = True
                self._unready(before)
                session.moved = before.moved
                session.expected = before.expected and not before.lost
                session.stalls, session.pace, session.listens = before.stalls, before.pace, before.listens
            self._by_name[name] = self._by_token[session.token] = session
            session.lease = self.lease
            self._gone.pop(name, None)
            self._settle(session)
            return session

    def expect(self, name: str, profile: Profile, key: str = "", run_id: str = ALL) -> None:
        """Let a device of a run be there that joined an earlier coordinator, with that digest of its key.

        Its lease begins now. Without a key, whoever comes first has the name.
        """
        with self._changed:
            before = self._by_name.get(name)
            if before is not None:
                before.serves = {**before.serves, run_id: profile} if before.expected else before.serves
                return
            session = Session(name, secrets.token_urlsafe(24), profile, self._clock(), key=key, expected=True)
            session.serves = {run_id: profile}
            self._by_name[name] = self._by_token[session.token] = session
            self._settle(session)

    def may_join(self, name: str, key: str) -> bool:
        """Return whether nobody is online under `name`, or whoever is has joined with the same `key`."""
        with self._changed:
            before = self._by_name.get(name)
            if before is None or not before.alive or (before.expected and not before.key):
                return True
            return bool(before.key) and secrets.compare_digest(before.key, _digest(key))

    def pace(self, session: Session, calls: int = 1) -> float:
        """Let a device call; return 0, or the seconds after which it may."""
        with self._changed:
            now = self._clock()
            session.pace = session.pace or Pace(now)
            return session.pace.take(now, calls)

    def give(self, name: str) -> Session | None:
        """Let a device make the calls of a task that it is given, and return its session."""
        with self._changed:
            session = self._by_name.get(name)
            if session is not None and session.pace is not None:
                session.pace.give()
            return session

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
            self._by_token.move_to_end(token)
            return session

    def beat(self, session: Session, kept: float) -> float:
        """Return the lease that a device is told; it goes by one of `kept` seconds until it hears of it.

        A device that does not say which one it keeps, 0, may not listen: its lease gets no shorter.
        """
        with self._changed:
            told = self.lease
            session.lease = max(told, min(kept, session.lease) if kept > 0 else session.lease)
            return told

    def connect(self, session: Session, stream: object | None) -> None:
        """Note that the task stream is open, or closed with `None`."""
        with self._changed:
            session.stream, session.listens = stream, session.listens or stream is not None
            session.expected = session.expected and stream is None
            self._settle(session)

    def pause(self, session: Session) -> None:
        """Give the device no task until it joins again."""
        with self._changed:
            session.paused = True
            self._settle(session)

    def leave(self, session: Session) -> None:
        """End a session at the device's wish."""
        with self._changed:
            session.left = True
            self._settle(session)

    def lapse(self) -> list[Session]:
        """End and return the sessions whose lease has run out."""
        with self._changed:
            now, lease = self._clock(), self.lease
            silent = takewhile(lambda each: each.seen < now - self.least, self._by_token.values())
            # One that is expected has been told none.
            lapsed = [each for each in silent if each.seen < now - (each.lease or lease)]
            for session in lapsed:
                session.lost = True
                self._settle(session)
            return lapsed

    def moved(self, session: Session, run_id: str, *, bytes_down: int = 0, bytes_up: int = 0) -> None:
        """Count payload bytes of a run."""
        with self._changed:
            before = session.moved.get(run_id, Traffic())
            session.moved[run_id] = Traffic(before.bytes_down + bytes_down, before.bytes_up + bytes_up)

    def forget(self, run_id: str) -> None:
        """Forget what was moved for a run that is over."""
        with self._changed:
            for session in self._by_name.values():
                session.moved.pop(run_id, None)

    def ready(self, run_id: str = ALL) -> Mapping[str, Session]:
        """Return the sessions that can be given a task of a run: alive, not paused, with an open task stream."""
        with self._changed:
            return dict(self._ready.get(run_id, {}))

    def all(self) -> Mapping[str, Session]:
        """Return the latest session of every name that is remembered."""
        with self._changed:
            return dict(self._by_name)

    def named(self, name: str) -> Session | None:
        """Return the latest session of a name; None if there is none, or it is not remembered."""
        with self._changed:
            return self._by_name.get(name)

    def idle(self, session: Session) -> float:
        """Return the seconds since the session's last call."""
        return self._clock() - session.seen

    def wait(self, count: int, seconds: float, stopped: Callable[[], bool], run_id: str = ALL) -> bool:
        """Wait until `count` sessions are ready for a run; False after `seconds`, or once `stopped()` after a `wake`.

        Expected devices are waited for too, for a lease at most.
        """
        with self._changed:
            self._changed.wait_for(lambda: stopped() or not self._away, self.lease)
            for name in self._away:
                self._by_name[name].expected = False
            self._away.clear()

            def enough() -> bool:
                return stopped() or len(self._ready.get(run_id, ())) >= count

            return self._changed.wait_for(enough, seconds) and not stopped()

    def wake(self) -> None:
        """Let every waiting caller check again."""
        with self._changed:
            self._changed.notify_all()

    def _settle(self, session: Session) -> None:
        """Sort a session in where its state belongs, and let every waiting caller check again."""
        if not session.alive:
            self._by_token.pop(session.token, None)
        if self._by_name.get(session.name) is session:
            if session.alive and not session.paused and session.stream is not None:
                for run_id in (ALL, *session.serves):
                    self._ready.setdefault(run_id, {})[session.name] = session
            else:
                self._unready(session)
            if session.expected and session.alive and session.stream is None:
                self._away.add(session.name)
            else:
                self._away.discard(session.name)
            if not session.alive:
                self._gone[session.name] = None
                if len(self._gone) > self._most_gone:
                    del self._by_name[self._gone.popitem(last=False)[0]]
        self._changed.notify_all()

    def _unready(self, session: Session) -> None:
        for run_id in (ALL, *session.serves):
            if self._ready.get(run_id, {}).pop(session.name, None) and not self._ready[run_id]:
                del self._ready[run_id]


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest() if key else ""
