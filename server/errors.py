"""What can go wrong at the coordinator."""

from diastole.proto.errors import DiastoleError


class AddressError(DiastoleError):
    """An address that cannot be listened on."""

    exit_code = 3

    @classmethod
    def taken(cls, address: str) -> "AddressError":
        """Return the error for an address that could not be bound."""
        return cls(f"cannot listen on {address}: it is in use, or not an address of this machine")


class TierError(DiastoleError):
    """A tier that does not exist, or that a device may not be in."""

    exit_code = 4


class StepError(DiastoleError):
    """A step of the server's own that leaves no usable global model."""

    exit_code = 4


class RoundError(DiastoleError):
    """A federation that cannot go on, for want of devices."""

    exit_code = 4


class FolderError(DiastoleError):
    """A folder in which a coordinator cannot keep its state."""

    exit_code = 2


class StoreError(DiastoleError):
    """A database that cannot be used."""

    exit_code = 2


class ExtraError(DiastoleError):
    """A package that something wanted needs, and that is not installed."""

    exit_code = 2
