"""Addresses, `host:port`."""

from ipaddress import ip_address


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach `address`."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
