"""The devices that a coordinator has enrolled, and those that it has invited."""

import json
import secrets
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from diastole.proto.errors import DiastoleError
from diastole.proto.files import write_bytes
from diastole.proto.identity import Identity, fingerprint
from diastole.proto.invitation import Token
from diastole.proto.jsontext import from_json
from diastole.server.errors import FolderError
from diastole.server.security.authority import LIFETIME, Authority
from diastole.server.wire.identity import digest

T = TypeVar("T")
DEVICES = "devices.json"
TOKEN_SECONDS, MOST_SECONDS = 3600.0, 30 * 86_400.0
"""For which a token counts by default, and at most."""


class SecretError(DiastoleError):
    """A token's secret that does not count."""


class Enrollment:
    """An authority, and who may show its certificates; safe to use from several threads.

    What is changed is on disk before a method returns; one that cannot write it changes nothing, and raises `OSError`.
    Of a token's secret only a hash is kept.

    Attributes:
        authority: that certifies.
        port: where devices enroll; put into tokens.

    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time, lifetime: timedelta = LIFETIME) -> None:
        """Go on with what is in `folder`; `clock` gives seconds of the Unix epoch. Raises `FolderError`.

        Certificates count for `lifetime`.
        """
        self.authority, self.port = Authority(folder, lifetime), 0
        self._path, self._clock, self._lock = folder / DEVICES, clock, threading.Lock()
        self._invited: dict[str, dict[str, Any]] = {}
        self._listed: dict[str, list[str]] = {}
        try:
            found = from_json(self._path.read_text())
            self._invited, self._listed = found["invited"], found["listed"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError):
            raise FolderError(f"{self._path}: the list of enrolled devices cannot be read") from None

    def invite(self, name: str, seconds: float = 0.0) -> str:
        """Return a token that counts once, for so many seconds, `MOST_SECONDS` at most; by default `TOKEN_SECONDS`."""
        secret = secrets.token_urlsafe(24)
        until = self._clock() + min(seconds if seconds > 0 else TOKEN_SECONDS, MOST_SECONDS)
        with self._lock:
            self._write(self._invited | {name: {"secret": _hash(secret), "until": until}}, self._listed)
        return Token(name, secret, self.port, self.authority.certificate.decode()).text()

    def issue(self, name: str) -> Identity:
        """Return an identity for a user of this machine; earlier ones of that name do not count any more."""
        with self._lock:
            identity = self.authority.issue(name)
            self._write(_without(self._invited, name), self._listed | {name: [fingerprint(identity.certificate)]})
        return identity

    def enroll(self, secret: str, request: bytes) -> tuple[str, bytes]:
        """Return the name and the certificate of the device that has a token's secret; it counts no more after that.

        Earlier certificates of that name do not count any more either.
        Raises `SecretError`, or `RequestError`, after which the secret still counts.
        """
        with self._lock:
            found = _hash(secret)
            name = next((name for name, each in self._invited.items() if each["secret"] == found), None)
            if name is None or self._invited[name]["until"] < self._clock():
                raise SecretError(
                    "this token is unknown, used or too old; ask the coordinator's operator for a new one"
                )
            certificate = self.authority.certify(name, request)
            self._write(_without(self._invited, name), self._listed | {name: [digest(certificate)]})
        return name, certificate

    def renew(self, name: str, request: bytes, shown: str) -> bytes:
        """Return a further certificate for an enrolled device; the one that it has `shown`, a digest, goes on counting.

        Raises `SecretError` if the name is not enrolled, or `RequestError`.
        """
        with self._lock:
            if shown not in self._listed.get(name, ()):
                raise SecretError(f"device {name!r} is not enrolled, or not with this certificate")
            certificate = self.authority.certify(name, request)
            # The answer may be lost: only the next renewal tells that the new certificate has arrived.
            mine = [shown, digest(certificate)]
            self._write(self._invited, self._listed | {name: mine})
        return certificate

    def revoke(self, name: str) -> bool:
        """Let a name's certificates and token count no more; return whether it had any."""
        with self._lock:
            known = name in self._listed or name in self._invited
            self._write(_without(self._invited, name), _without(self._listed, name))
        return known

    def listed(self, name: str, digest: str) -> bool:
        """Return whether a certificate of that digest counts for `name`."""
        with self._lock:
            return digest in self._listed.get(name, ())

    def _write(self, invited: dict[str, dict[str, Any]], listed: dict[str, list[str]]) -> None:
        now = self._clock()
        invited = {name: each for name, each in invited.items() if each["until"] >= now}
        write_bytes(self._path, json.dumps({"invited": invited, "listed": listed}, indent=1).encode(), 0o600)
        self._invited, self._listed = invited, listed


def _without(names: dict[str, T], name: str) -> dict[str, T]:
    return {each: value for each, value in names.items() if each != name}


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
