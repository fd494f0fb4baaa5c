"""The most that a coordinator gives to devices: connections, sessions, transfers, time.

A device may be broken or hostile, and a coordinator may be on the internet. So whatever devices can make it hold has a
bound, which honest devices do not meet, or are told to come back from.
"""

import resource
from dataclasses import dataclass

DESCRIPTORS = 1 << 17
"""Descriptors that a coordinator asks the system for, if it may have so many."""

RESERVED = 256
"""Descriptors that are never given to connections: for libraries, the store, and operators."""

MESSAGE_BYTES = 2 << 20
"""Of one message from a device; the largest honest ones are chunks of 1 MiB, from agents of earlier versions."""

LOOKAHEAD_BYTES = 1 << 19
"""Of one call that may have come without being read; beside them, of a message that is waited for, all."""

STREAMS = 64
"""Calls under way on one connection; an agent has three."""

SILENT_SECONDS = 60
"""After which a connection without a call is closed; an agent's stream of tasks is a call."""

AGE_SECONDS = 3600
"""After which a connection is made anew, with what a device has left standing on the old one."""

HANDSHAKE_SECONDS = 20
"""That a connection may take until it speaks HTTP/2."""

SESSIONS = 65_536
"""Devices that are joined at a time."""

GONE = 10_000
"""Names that are remembered of devices that have left or are lost."""

HEARTBEATS = 150
"""A second, of all devices together; each takes 1.2 ms of a core. Leases grow with the fleet, so that no more come."""

FAULTS, ALL_FAULTS = 100, 1000
"""Faults that the journal lists in a round: of one device, and of all."""


@dataclass(frozen=True, slots=True)
class TransferBounds:
    """What transfers may take.

    Attributes:
        places: that move at a time, in each direction; the others wait in line.
        line_seconds: that one waits in line before its device is told to come back.
        turn_seconds: that one may keep its place while others wait.
        idle_seconds: that one may go without a byte.
        grace_seconds: that an upload may take beside the time that it has for its bytes.
        least_rate: bytes a second that an upload must bring; a slower one could hold a round open without end.
        calls: downloads of one device at a time; one more ends the oldest.
        stalls: downloads that a device may let stand; each may hold a chunk until its connection ends.

    """

    places: int = 64
    line_seconds: float = 10.0
    turn_seconds: float = 10.0
    idle_seconds: float = 30.0
    grace_seconds: float = 60.0
    least_rate: float = 1024.0
    calls: int = 2
    stalls: int = 8


def raise_descriptors(wanted: int = DESCRIPTORS) -> int:
    """Let this process have as many descriptors as it may, `wanted` at most, and return how many it now may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return wanted if soft == resource.RLIM_INFINITY else soft


def most_connections(descriptors: int, places: int) -> int:
    """Return how many connections leave enough descriptors for the files of transfers, and for all else."""
    return max(16, descriptors - RESERVED - 2 * places)
