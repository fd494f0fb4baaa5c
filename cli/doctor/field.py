"""What a device sees of its coordinator: from the name to the answer, as far as it gets."""

import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diastole.cli.doctor import certificates
from diastole.cli.doctor.finding import Finding, Level, fault, ok, warning
from diastole.client.errors import FolderError
from diastole.proto.address import Address, proxy_of
from diastole.proto.identity import Identity
from diastole.proto.invitation import SERVER_NAME, Token, TokenError
from diastole.proto.words import PROTOCOL_VERSION, Reason, plain

SECONDS = 5.0
"""That a connection, and a call, may take."""
MOST_SKEW = 60.0
"""Seconds by which two clocks may differ."""
ENROLL = (
    "join once with a token: the operator makes one with `diastole admin enroll NAME`, and join takes it as --enroll"
)
CALLS = "mend what is named above it; if all of that is right, something else listens there, or the coordinator hangs"


@dataclass(frozen=True, slots=True)
class Device:
    """How a device would call.

    Attributes:
        address: of the coordinator.
        state: its state folder; None if it has none yet.
        ca: certificate of the coordinator's authority, PEM; None for the system's, or the coordinator's own.
        certificate: the device's, PEM, with `key`; None if it has none of its own.
        key: likewise.
        token: with which it would enroll; empty if it would not.
        insecure: whether it would speak plain text.

    """

    address: str
    state: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = ""
    insecure: bool = False


def check(device: Device) -> Iterator[Finding]:
    """Look from a device at its coordinator; stop where the next step cannot be."""
    where = Address.parse(device.address)
    if proxy := proxy_of(device.address):
        why = "gRPC calls through it, and what is found here may not hold for those calls"
        yield warning("proxy", f"set in {proxy}", why, f"no_proxy={where.host} calls the coordinator directly")
    for step in (_resolved, _reached):
        yield (found := step(where))
        if found.level is Level.FAULT:
            return
    if device.token:
        yield from _token(device, where)
    try:
        identity = _identity(device)
    except FolderError as error:
        yield fault("certificate", "cannot be read", str(error), ENROLL)
        return
    shown = _shown(where)
    secured = list(_tls(device, where, shown, identity))
    yield from secured
    # What is wrong already is wrong for the call too.
    if not any(each.level is Level.FAULT for each in secured) and not (device.token and identity is None):
        yield from _called(device, identity, secure=shown is not None)


def _resolved(where: Address) -> Finding:
    try:
        found = sorted(
            {str(each[4][0]) for each in socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)}
        )
    except OSError as error:
        why = f"{error.strerror or error}"
        return fault("name", f"{where.host} leads nowhere", why, "mend the name, or DNS; or give the IP address")
    return ok("name", f"{where.host} is {', '.join(found[:4])}")


def _reached(where: Address) -> Finding:
    check = "port"
    try:
        with socket.create_connection((where.host, where.port), SECONDS):
            return ok(check, f"{where} is open")
    except ConnectionRefusedError:
        todo = "start the coordinator, or give the port that it says; `serve --listen` off loopback for other machines"
        return fault(check, f"{where} is closed", "the machine is there, and nobody listens at that port", todo)
    except TimeoutError:
        todo = "open the port in the firewalls between, and look whether the machine is on"
        return fault(check, f"{where} does not answer", f"nothing came back within {SECONDS:g} s", todo)
    except OSError as error:
        todo = "look at this machine's network, its routes and the address"
        return fault(check, f"{where} cannot be reached", error.strerror or str(error), todo)


def _token(device: Device, where: Address) -> Iterator[Finding]:
    try:
        token = Token.parse(device.token)
    except TokenError as error:
        yield fault("token", "is none", str(error), ENROLL)
        return
    yield certificates.life("token's authority", token.ca, ENROLL)
    at = where.at(token.port)
    reached = _reached(at)
    yield Finding("enroll port", reached.level, reached.what, reached.why, reached.todo)
    shown = _shown(at) or _shown(where)
    if shown is not None and not certificates.signed(shown, token.ca):
        why = "who answers there is not the coordinator that the token is for, or its authority was made anew"
        yield fault("token", f"is not of the coordinator at {where}", why, "ask its operator for a new token")


def _identity(device: Device) -> Identity | None:
    """Return who the device is to a coordinator that has enrolled it. Raises `FolderError`."""
    if device.state is None or device.insecure or device.certificate or device.ca:
        return None
    from diastole.client.identities import Identities

    return Identities(device.state).at(device.address)


def _shown(where: Address) -> str | None:
    """Return the certificate, PEM, that is shown at an address; None if nobody there speaks TLS."""
    try:
        return ssl.get_server_certificate((where.host, where.port), timeout=SECONDS)
    except (OSError, ValueError):
        return None


def _tls(device: Device, where: Address, shown: str | None, identity: Identity | None) -> Iterator[Finding]:
    check = "encryption"
    wanted = identity is not None or device.ca is not None or device.certificate is not None
    if shown is None:
        if wanted or not (where.loopback or device.insecure):
            why = "the coordinator speaks plain text, or is no coordinator"
            todo = "start it off loopback without --insecure; or, on a network that is trusted, join with --insecure"
            yield fault(check, f"{where} speaks no TLS", why, todo)
        else:
            yield ok(check, "none: plain text on this machine" if where.loopback else "none, as asked for")
        return
    if device.insecure:
        yield fault(check, f"{where} speaks TLS", "the device would speak plain text", "join without --insecure")
        return
    yield certificates.life("coordinator's certificate", shown, "restart the coordinator, or renew its --tls-cert")
    yield from _trusted(device, where, shown, identity)
    if device.certificate is not None and device.key is not None:
        yield certificates.pair(device.certificate, device.key)
        yield certificates.life("device's certificate", device.certificate.read_bytes(), "renew it at its authority")


def _trusted(device: Device, where: Address, shown: str, identity: Identity | None) -> Iterator[Finding]:
    """Say whether the device would believe the certificate that is shown, and has one itself."""
    names = certificates.names(shown)
    if identity is not None:
        if not certificates.signed(shown, identity.ca):
            why = "the device is enrolled with another coordinator, or this one's authority was made anew"
            yield fault("enrollment", "is not with the coordinator there", why, ENROLL)
            return
        yield ok("enrollment", f"as {identity.name}")
        yield certificates.life("device's certificate", identity.certificate, ENROLL)
    elif SERVER_NAME in names:
        if not device.token:
            why = "the coordinator certifies its devices itself, and this one has no certificate of its"
            yield fault("enrollment", "missing", why, ENROLL)
    elif where.host not in names:
        why = f"the certificate is for {', '.join(names[:4]) or 'nobody'}"
        yield fault(
            "certificate's name", f"is not {where.host}", why, "call it by that name, or make one for this name"
        )
    else:
        yield ok("certificate's name", where.host)


def _called(device: Device, identity: Identity | None, *, secure: bool) -> Iterator[Finding]:
    """Ask the coordinator what it trains, as an agent does, and whether it would take this device."""
    import grpc

    from diastole.client.channel import open_channel, reason_of, why
    from diastole.client.errors import LinkError
    from diastole.client.tls import credentials
    from diastole.v1 import device_pb2 as pb
    from diastole.v1 import device_pb2_grpc

    address = device.address
    try:
        given = credentials(address, device.ca, device.certificate, device.key, insecure=device.insecure)
    except LinkError as error:
        yield fault("certificate", "cannot be used", str(error), "give a certificate that counts, and its key")
        return
    shown = identity.credentials() if identity else given
    with open_channel(address, shown, enrolled=identity is not None) as channel:
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            before = time.time()
            hello = stub.Hello(pb.HelloRequest(protocol_versions=[PROTOCOL_VERSION]), timeout=SECONDS)
            yield from _understood(hello, (before + time.time()) / 2)
            # It asks for no version, and is refused for that once all else is right.
            stub.Join(pb.JoinRequest(name=_name(device, identity)), timeout=SECONDS)
        except grpc.RpcError as error:
            reason = reason_of(error)
            text = plain(error.details() or "")
            if reason == Reason.PROTOCOL_VERSION and text.startswith("the agent speaks protocol 0"):
                yield ok("coordinator", "would take this device")
            elif reason == Reason.PROTOCOL_VERSION:
                yield fault("version", "differs", text, "install the same version of diastole on both")
            elif reason in (Reason.DEVICE_REVOKED, Reason.DEVICE_CERTIFICATE):
                yield fault("enrollment", "does not count any more", text, ENROLL)
            elif reason:
                yield warning("coordinator", "has nothing for this device now", text, "ask again later")
            else:
                yield fault("call", "fails", why(address, error, secure), CALLS)


def _name(device: Device, identity: Identity | None) -> str:
    """Return the name that a device would join under."""
    if identity is not None:
        return identity.name
    shown = device.certificate.read_bytes() if device.certificate else b""
    return next(iter(certificates.names(shown)), certificates.owner(shown)) or "doctor"


def _understood(hello: Any, now: float) -> Iterator[Finding]:
    theirs, mine = plain(hello.version), version("diastole")
    if theirs and theirs != mine:
        text = f"the coordinator has diastole {theirs}, this device {mine}"
        todo = "agents of other versions work as long as the protocol is the same; update the older one when you can"
        yield warning("version", text, f"both speak protocol {hello.protocol_version}", todo)
    else:
        yield ok("version", f"diastole {mine}, protocol {hello.protocol_version}, on both")
    skew = now - hello.clock_seconds if hello.clock_seconds else 0.0
    if abs(skew) > MOST_SKEW:
        way = "before" if skew > 0 else "behind"
        text = f"this machine is {abs(skew):.0f} s {way} the coordinator"
        why = "certificates count by the clock, and lines of two logs do not go together"
        yield fault("clock", text, why, "let a time service keep both clocks (systemd-timesyncd, chrony)")
    elif hello.clock_seconds:
        yield ok("clock", f"{abs(skew):.1f} s from the coordinator's")
