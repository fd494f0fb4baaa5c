"""What can go wrong on a device."""

from diastole.proto.errors import DiastoleError


class DataError(DiastoleError):
    """A data set that is missing, unreadable or not what is needed."""

    exit_code = 2


class FolderError(DiastoleError):
    """A folder in which an agent cannot keep what it must."""

    exit_code = 2


class ModelFileError(DiastoleError):
    """A file that holds no trained model, or not the one that is asked for."""

    exit_code = 2


class LinkError(DiastoleError):
    """A coordinator that cannot be reached."""

    exit_code = 3


class PlanError(DiastoleError):
    """An execution plan that is none."""

    exit_code = 2


class PlaceError(DiastoleError):
    """A device to train on that is not there."""

    exit_code = 2


class RefusedError(DiastoleError):
    """A coordinator that answers, but not with what was asked; `reason` is the word that it gives, or empty."""

    exit_code = 4

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class RunFailedError(DiastoleError):
    """A run that broke off, or came to nothing, as its coordinator says."""

    exit_code = 5


class MessageError(DiastoleError):
    """Something a coordinator says that no honest one would say."""

    exit_code = 4


class PausedError(DiastoleError):
    """Work at a time when the owner of the device wants none."""


class BudgetError(DiastoleError):
    """Work that would take more than the owner of the device allows."""
