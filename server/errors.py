"""What can go wrong at the coordinator."""

from diastole.proto.errors import DiastoleError


class AddressError(DiastoleError):
    """An address that cannot be listened on."""

    reason = "ADDRESS"
    exit_code = 3

    @classmethod
    def taken(cls, address: str) -> "AddressError":
        """Return the error for an address that could not be bound."""
        return cls(f"cannot listen on {address}: it is in use, or not an address of this machine")


class RoundError(DiastoleError):
    """A federation that cannot go on, for want of devices."""

    reason = "ROUND"
    exit_code = 4
