"""Addresses, `host:port`."""

LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach `address`."""
    return address.startswith(LOOPBACK)
