"""How often, and for how long, an agent repeats a call that has failed."""

import logging
import time
from collections.abc import Callable
from random import Random
from typing import TypeVar

import grpc

from diastole.client.channel import HOPELESS, TRANSIENT, reason_of, retry_of, why
from diastole.client.errors import LinkError, RefusedError
from diastole.proto.words import Reason, plain

T = TypeVar("T")
LOG = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_BUSY_PAUSE = 0.1, 10.0, 30.0
BUSY = (Reason.CROWDED, Reason.STALLED, Reason.STORAGE, Reason.TOO_OFTEN)
"""Reasons of a coordinator that is there, and asks for patience."""
TELL_SECONDS = 5.0
"""After which an agent that waits says so, once."""
ODD = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DATA_LOSS,
)
"""Statuses of a coordinator in trouble, or of something between; with a reason word they are an answer."""
ODD_TRIES, ODD_PAUSE = 8, 1.0
"""Tries in a row that may end so, some 40 seconds of them, and the least seconds between two."""
ONLINE_SECONDS = 120.0
"""That an agent which starts waits for another session under its name, which may be its own from before a kill."""


class Tries:
    """The tries of one call, with pauses between them that grow, and differ from device to device."""

    def __init__(
        self, address: str, name: str, patience: float, wait: Callable[[float], object], *, secure: bool
    ) -> None:
        """Begin.

        Args:
            address: of the coordinator.
            name: of the device.
            patience: seconds for which nobody may answer.
            wait: waits so many seconds, or for the agent's end.
            secure: whether the call goes over TLS.

        """
        self._address, self._patience, self._wait, self._secure = address, patience, wait, secure
        self._random = Random(name)  # noqa: S311 (spreads devices out; nothing secret)
        self._first = self._began = time.monotonic()
        self._pause, self._odd, self._told = FIRST_PAUSE, 0, False

    def done(self, result: T) -> T:
        """Return what the call has come to, and say that the coordinator is there if it was said that it is not."""
        if self._told:
            LOG.info("the coordinator at %s is there again", self._address)
        return result

    def again(self, error: grpc.RpcError, contact: float) -> None:
        """Wait for the next try.

        Args:
            error: how the last one ended.
            contact: when the coordinator was heard of last, by the monotonic clock.

        Raises `LinkError` or `RefusedError` if there is to be no other.

        """
        code, reason = error.code(), reason_of(error)
        busy = reason in BUSY
        if contact > self._began:
            self._began, self._odd = contact, 0
            self._pause = self._pause if busy else FIRST_PAUSE
        said = f"{self._address}: {plain(error.details() or code.name)}"
        least = 0.0
        if reason == Reason.DEVICE_ONLINE:
            if not contact and time.monotonic() - self._first > min(self._patience, ONLINE_SECONDS):
                raise RefusedError(said, reason) from None
        elif code in ODD and not reason:
            self._odd, least = self._odd + 1, ODD_PAUSE
            if self._odd > ODD_TRIES:
                raise RefusedError(f"{said} ({ODD_TRIES} times in a row)") from None
        elif reason == Reason.TOO_OFTEN:
            least = retry_of(error)
        elif code not in TRANSIENT or reason == Reason.FINISHED:
            raise RefusedError(said, reason) from None
        text = why(self._address, error, self._secure)
        if HOPELESS.search(text):
            raise LinkError(f"no secure connection to {self._address}: {text}") from None
        away = time.monotonic() - self._began
        if away > self._patience and code in TRANSIENT and not busy:
            raise LinkError(f"no coordinator at {self._address} after {self._patience:g} s ({text})") from None
        if away > TELL_SECONDS and not self._told:
            self._told = True
            LOG.warning("waiting for the coordinator at %s (%s)", self._address, text)
        self._wait(max(self._pause * self._random.uniform(0.5, 1.0), least))
        self._pause = min(2 * self._pause, LONGEST_BUSY_PAUSE if busy else LONGEST_PAUSE)
