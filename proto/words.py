"""The words of the wire that are not in the messages: the protocol's version, the reasons of errors, and sizes."""

from enum import StrEnum

PROTOCOL_VERSION = 2
"""The version that this package speaks. The agent says which versions it speaks, and the coordinator picks one."""

REASON_KEY = "diastole-reason"
"""The key in an error's trailing metadata under which a program finds the reason."""

RETRY_KEY = "diastole-retry-ms"
"""The key beside it of the milliseconds after which the call may be made again."""


LONGEST_TEXT = 300
"""The most characters that one side shows of a text of the other."""


def plain(text: str, most: int = LONGEST_TEXT) -> str:
    """Return at most `most` characters of a text of the other side, on one line, as a terminal shows it literally."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])


def megabytes(count: float) -> str:
    """Return bytes for people, in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


class Reason(StrEnum):
    """Why a call was refused, for programs; the message beside it is for people.

    The comments of the `.proto` files say when each comes.
    """

    ADMIN_TOKEN = "ADMIN_TOKEN"  # noqa: S105 (a word of the wire)
    CROWDED = "CROWDED"
    DEVICE_CERTIFICATE = "DEVICE_CERTIFICATE"
    DEVICE_NAME = "DEVICE_NAME"
    DEVICE_ONLINE = "DEVICE_ONLINE"
    DEVICE_PROFILE = "DEVICE_PROFILE"
    DEVICE_REVOKED = "DEVICE_REVOKED"
    DEVICE_TIER = "DEVICE_TIER"
    DOWNLOAD_OFFSET = "DOWNLOAD_OFFSET"
    EXPERIMENT = "EXPERIMENT"
    FINISHED = "FINISHED"
    LABEL = "LABEL"
    MODEL_SCHEMA = "MODEL_SCHEMA"
    NO_ENROLLMENT = "NO_ENROLLMENT"
    NOT_PAUSED = "NOT_PAUSED"
    OPERATOR_CERTIFICATE = "OPERATOR_CERTIFICATE"
    PROTOCOL_VERSION = "PROTOCOL_VERSION"
    SIGNING_REQUEST = "SIGNING_REQUEST"
    STALLED = "STALLED"
    STARTING = "STARTING"
    STORAGE = "STORAGE"
    TOO_OFTEN = "TOO_OFTEN"
    TOKEN = "TOKEN"  # noqa: S105 (a word of the wire)
    UNKNOWN_DEVICE = "UNKNOWN_DEVICE"
    UNKNOWN_OBJECT = "UNKNOWN_OBJECT"
    UNKNOWN_ROUND = "UNKNOWN_ROUND"
    UNKNOWN_RUN = "UNKNOWN_RUN"
    UNKNOWN_SESSION = "UNKNOWN_SESSION"
    UPLOAD_DIGEST = "UPLOAD_DIGEST"
    UPLOAD_HEADER = "UPLOAD_HEADER"
    UPLOAD_OFFSET = "UPLOAD_OFFSET"
    UPLOAD_SIZE = "UPLOAD_SIZE"
    WATCHERS = "WATCHERS"
