"""Addresses, `host:port`: what is one, which of them are on this machine, and why a call to one failed."""

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from diastole.proto.errors import DiastoleError

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


HOST = re.compile(r"(?=.{1,253}$)(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
NUMBERS = re.compile(r"[0-9.]+")


class NoAddressError(DiastoleError):
    """A text that is no address."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Address:
    """Where somebody listens.

    Attributes:
        host: a name, or an IP address without brackets.
        port: 1 to 65535; 0 for any that is free.

    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, listening: bool = False) -> "Address":
        """Read `host:port`, an IPv6 address in brackets; port 0 only for who is `listening`.

        Raises `NoAddressError`.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port):
            raise NoAddressError(f"address {text!r} is not host:port, such as 127.0.0.1:7700 or [::1]:7700")
        if not (0 if listening else 1) <= int(port) <= 65_535:
            least = "0 (any that is free)" if listening else "1"
            raise NoAddressError(f"address {text!r}: port {port}; {least} to 65535 is accepted")
        inside = host[1:-1] if host.startswith("[") and host.endswith("]") else None
        if ":" in host and inside is None:
            raise NoAddressError(f"address {text!r}: an IPv6 address stands in brackets, such as [::1]:7700")
        if not (_is_ip(host, 4) or _is_name(host) if inside is None else _is_ip(inside, 6)):
            raise NoAddressError(f"address {text!r}: {host!r} is neither a host's name nor an IP address")
        return cls(host if inside is None else inside, int(port))

    @property
    def loopback(self) -> bool:
        """True if only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def at(self, port: int) -> "Address":
        """Return the same host with another port."""
        return Address(self.host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach `address`. Raises `NoAddressError`."""
    return Address.parse(address, listening=True).loopback


def channel_options(address: str) -> tuple[tuple[str, int], ...]:
    """Return the gRPC options of a channel to `address`: no HTTP proxy stands between this machine and itself."""
    return (("grpc.enable_http_proxy", 0),) if is_loopback(address) else ()


def proxy_of(address: str) -> str:
    """Return the HTTP proxy that gRPC calls `address` through, such as `http_proxy (proxy.example:3128)`, or "".

    gRPC takes it from the environment (its doc/environment_variables.md); a password in it is left out here.
    """
    host = Address.parse(address, listening=True).host
    name = next((name for name in PROXIES if os.environ.get(name)), "")
    spared = next((value for variable in EXCEPTIONS if (value := os.environ.get(variable))), "")
    if not name or is_loopback(address) or any(_covers(entry.strip(), host) for entry in spared.split(",")):
        return ""
    try:
        url = urlsplit(os.environ[name])
        return f"{name} ({url.hostname}:{url.port or 80})"
    except ValueError:
        return name


def cause(address: str, details: str | None) -> str:
    """Return in one line why a call to `address` failed, from the `details` of gRPC's error."""
    text = re.sub(r"^.*last error: ([A-Z]+: )?(ipv[46]:[^ ]+: )?", "", " ".join((details or "no reason given").split()))
    proxy = proxy_of(address)
    return f"{text}; called through the proxy in {proxy}" if proxy else text


def _is_ip(text: str, version: int) -> bool:
    try:
        return ip_address(text).version == version
    except ValueError:
        return False


def _is_name(text: str) -> bool:
    return bool(HOST.fullmatch(text)) and not NUMBERS.fullmatch(text)


def _covers(entry: str, host: str) -> bool:
    """Return whether an entry of `no_proxy`, a domain's end or a network, covers `host`."""
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:
        return bool(entry) and host.endswith(entry)
