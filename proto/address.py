"""Addresses, `host:port`: which of them are on this machine, and why a call to one failed."""

import os
import re
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach `address`."""
    host = _host(address)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def channel_options(address: str) -> tuple[tuple[str, int], ...]:
    """Return the gRPC options of a channel to `address`: no HTTP proxy stands between this machine and itself."""
    return (("grpc.enable_http_proxy", 0),) if is_loopback(address) else ()


def proxy_of(address: str) -> str:
    """Return the HTTP proxy that gRPC calls `address` through, such as `http_proxy (proxy.example:3128)`, or "".

    gRPC takes it from the environment (its doc/environment_variables.md); a password in it is left out here.
    """
    host = _host(address)
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


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _covers(entry: str, host: str) -> bool:
    """Return whether an entry of `no_proxy`, a domain's end or a network, covers `host`."""
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:
        return bool(entry) and host.endswith(entry)
