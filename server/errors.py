"""What can go wrong at the coordinator."""

from diastole.proto.errors import DiastoleError


class AddressError(DiastoleError):
    """An address that cannot be listened on."""

    reason = "ADDRESS"
    exit_code = 3


class RoundError(DiastoleError):
    """A federation that cannot go on, for want of devices."""

    reason = "ROUND"
    exit_code = 4
