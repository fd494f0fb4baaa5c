"""What can go wrong on a device."""

from diastole.proto.errors import DiastoleError


class DataError(DiastoleError):
    """A data set that is missing, unreadable or not what is needed."""

    reason = "DATA"
    exit_code = 2


class LinkError(DiastoleError):
    """A coordinator that cannot be reached."""

    reason = "LINK"
    exit_code = 3


class RefusedError(DiastoleError):
    """A coordinator that answers, but not with what was asked; `word` is the reason it gives."""

    reason = "REFUSED"
    exit_code = 4

    def __init__(self, message: str, word: str = "") -> None:
        super().__init__(message)
        self.word = word
