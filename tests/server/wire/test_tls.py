"""Who may join over TLS, with certificates made by openssl."""

import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from refusals import refusal

from diastole.client import tls as client
from diastole.client.connection import Connection
from diastole.client.errors import LinkError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.proto.profile import Profile
from diastole.proto.words import PROTOCOL_VERSION, Reason
from diastole.server.errors import AddressError
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.tls import Protection, protection
from diastole.v1 import device_pb2, device_pb2_grpc

Pair = tuple[Path, Path]


def shown_by(own: Pair, client_ca: Path | None = None) -> grpc.ServerCredentials:
    found = protection("0.0.0.0:0", certificate=own[0], key=own[1], client_ca=client_ca).credentials
    assert found is not None
    return found


@pytest.fixture(scope="module")
def certify(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Return a maker of a certificate, for a common and an alternative name, and its key."""
    folder = tmp_path_factory.mktemp("certificates")

    def make(name: str, other: str = "localhost", by: Pair | None = None) -> Pair:
        paths = folder / f"{name}-{other}.pem", folder / f"{name}-{other}.key"
        signer = ["-CA", by[0], "-CAkey", by[1], "-addext", f"subjectAltName=DNS:{other}"] if by else []
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", f"/CN={name}", "-days", "2", "-out", paths[0], "-keyout", paths[1], *signer]
        subprocess.run(command, check=True, capture_output=True)
        return paths

    return make


@pytest.fixture(scope="module")
def authority(certify: Callable[..., Pair]) -> Pair:
    return certify("authority")


@pytest.fixture
def join(certify: Callable[..., Pair], authority: Pair, model: ModelConfig) -> Callable[..., str]:
    """Return a function that joins under a name and returns the session, over TLS that is mutual or not."""

    def call(name: str, pair: Pair | None, mutual: bool) -> str:
        ca, own = authority[0], certify("coordinator", by=authority)
        schema = schema_hash(initial_state(model, 0))
        shown = shown_by(own, ca if mutual else None)
        with ExitStack() as stack:
            link = stack.enter_context(closing(GrpcLink("127.0.0.1:0", "run", model, schema, credentials=shown)))
            secrets = client.credentials("localhost:1", ca, *(pair or (None, None)), insecure=False)
            channel = stack.enter_context(grpc.secure_channel(f"localhost:{link.port}", secrets))
            profile = Profile("test", 10).message("0")
            request = device_pb2.JoinRequest(
                protocol_version=PROTOCOL_VERSION, name=name, profile=profile, model_schema=schema
            )
            return device_pb2_grpc.DeviceServiceStub(channel).Join(request, timeout=20).session

    return call


@pytest.mark.parametrize("name", ["one", "one.devices"])
def test_a_device_joins_under_the_names_in_its_certificate(certify, authority, join, name: str) -> None:
    assert join(name, certify("one", "one.devices", by=authority), mutual=True)


def test_a_device_does_not_join_under_the_name_of_another(certify, authority, join) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        join("two", certify("one", "one.devices", by=authority), mutual=True)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == "device 'two' shows a certificate for ['one', 'one.devices']"


def test_a_token_is_worth_nothing_with_the_certificate_of_another(certify, authority, model: ModelConfig) -> None:
    schema = schema_hash(initial_state(model, 0))
    shown = shown_by(certify("coordinator", by=authority), authority[0])
    with ExitStack() as stack:
        link = stack.enter_context(closing(GrpcLink("127.0.0.1:0", "run", model, schema, credentials=shown)))

        def stub(name: str) -> device_pb2_grpc.DeviceServiceStub:
            secrets = client.credentials("localhost:1", authority[0], *certify(name, by=authority), insecure=False)
            channel = stack.enter_context(grpc.secure_channel(f"localhost:{link.port}", secrets))
            return device_pb2_grpc.DeviceServiceStub(channel)

        def join(stub: device_pb2_grpc.DeviceServiceStub) -> str:
            request = device_pb2.JoinRequest(
                protocol_version=PROTOCOL_VERSION,
                name="dev1",
                profile=Profile("test", 10).message("0"),
                model_schema=schema,
            )
            return str(stub.Join(request, timeout=20).session)

        one, two = stub("dev1"), stub("dev2")
        token = join(one)
        upload = device_pb2.UploadRequest(header=device_pb2.UploadHeader(session=token))
        calls = {
            "Tasks": lambda: next(two.Tasks(device_pb2.TasksRequest(session=token))),
            "Download": lambda: next(two.Download(device_pb2.DownloadRequest(session=token))),
            "UploadStatus": lambda: two.UploadStatus(device_pb2.UploadStatusRequest(session=token)),
            "Upload": lambda: two.Upload(iter([upload])),
            "Decline": lambda: two.Decline(device_pb2.DeclineRequest(session=token)),
            "Heartbeat": lambda: two.Heartbeat(device_pb2.HeartbeatRequest(session=token)),
            "Renew": lambda: two.Renew(device_pb2.RenewRequest(name="dev1")),
            "Leave": lambda: two.Leave(device_pb2.LeaveRequest(session=token)),
        }
        service = device_pb2.DESCRIPTOR.services_by_name["DeviceService"]
        assert {*calls} == {method.name for method in service.methods} - {"Hello", "Join"}
        for call in calls.values():
            assert refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, Reason.DEVICE_CERTIFICATE)
        assert one.Heartbeat(device_pb2.HeartbeatRequest(session=token)).lease_seconds > 0
        # The certificate decides: no key is needed.
        assert join(one) != token


@pytest.mark.parametrize("own", [False, True])
def test_a_device_that_the_authority_has_not_certified_is_not_let_in(certify, join, own: bool) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        join("one", certify("one") if own else None, mutual=True)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_coordinator_that_asks_for_no_certificate_takes_every_name(join) -> None:
    assert join("one", None, mutual=False)


def ended(pair: Pair, by: Pair) -> Pair:
    """Return a certificate of the same key and names that ended a year ago."""
    made = x509.load_pem_x509_certificate(pair[0].read_bytes())
    past = datetime.now(UTC) - timedelta(days=365)
    builder = x509.CertificateBuilder(made.issuer, made.subject, made.public_key(), made.serial_number)
    builder = builder.not_valid_before(past - timedelta(days=1)).not_valid_after(past)
    for extension in made.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    path = pair[0].with_suffix(".ended.pem")
    signed = builder.sign(load_pem_private_key(by[1].read_bytes(), None), hashes.SHA256())
    path.write_bytes(signed.public_bytes(Encoding.PEM))
    return path, pair[1]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("authority", "unable to get local issuer certificate: OK; a device that is not enrolled"),
        ("host", "Hostname Verification Check failed"),
        ("ended", "certificate has expired"),
        ("plain", "WRONG_VERSION_NUMBER"),
    ],
)
def test_what_waiting_does_not_heal_is_said_at_once(
    certify, authority, model: ModelConfig, wrong: str, reason: str
) -> None:
    ca = certify("another")[0] if wrong == "authority" else authority[0]
    own = certify("coordinator", "elsewhere.example" if wrong == "host" else "localhost", by=authority)
    shown = None if wrong == "plain" else shown_by(ended(own, authority) if wrong == "ended" else own)
    served = GrpcLink("127.0.0.1:0", "run", model, initial_state(model, 0), credentials=shown)
    with closing(served) as link:
        secrets = client.credentials("localhost:1", ca, None, None, insecure=False)
        device = Connection(f"localhost:{link.port}", "one", Profile("test", 10), patience=60.0, credentials=secrets)
        began = time.monotonic()
        with pytest.raises(LinkError, match=f"no secure connection to localhost:{link.port}: .*{reason}") as caught:
            device.join()
        device.close("")
    assert time.monotonic() - began < 30
    assert "\n" not in str(caught.value)


def test_plain_text_to_a_coordinator_that_speaks_tls_says_so(certify, authority, model: ModelConfig) -> None:
    shown = shown_by(certify("coordinator", by=authority))
    with closing(GrpcLink("127.0.0.1:0", "run", model, initial_state(model, 0), credentials=shown)) as link:
        # Not by name: a name may also mean an address where nobody listens, and the last one tried is told.
        device = Connection(f"127.0.0.1:{link.port}", "one", Profile("test", 10), patience=0.2)
        with pytest.raises(LinkError, match="Socket closed; if the coordinator speaks TLS, give its authority"):
            device.join()
        device.close("")


@pytest.mark.parametrize("ca", ["ca.pem", "missing.pem"])
def test_an_authority_of_devices_without_a_certificate_of_ones_own_is_refused(tmp_path: Path, ca: str) -> None:
    (tmp_path / "ca.pem").write_text("x")
    with pytest.raises(AddressError, match=f"{ca}: only over TLS are devices asked for certificates"):
        protection("127.0.0.1:0", client_ca=tmp_path / ca)


def test_off_loopback_a_coordinator_is_its_own_authority_unless_told_otherwise() -> None:
    assert protection("127.0.0.1:7700") == protection("[::1]:7700") == Protection()
    assert protection("0.0.0.0:7700") == Protection(enroll="0.0.0.0:7702")
    assert protection("[::]:7700") == Protection(enroll="[::]:7702")
    assert protection("10.0.0.1:0") == Protection(enroll="10.0.0.1:0")
    assert protection("127.0.0.1:7700", enroll="127.0.0.1:1") == Protection(enroll="127.0.0.1:1")
    assert protection("0.0.0.0:7700", insecure=True) == Protection()
    with pytest.raises(AddressError, match="no port 65537 at which devices could enroll"):
        protection("0.0.0.0:65535")


def test_plain_text_and_certificates_contradict_each_other(tmp_path: Path) -> None:
    pair = tmp_path / "one.pem", tmp_path / "one.key"
    for files in ({"certificate": pair[0], "key": pair[1]}, {"client_ca": pair[0]}):
        with pytest.raises(AddressError, match="insecure means plain text"):
            protection("0.0.0.0:0", insecure=True, **files)
        with pytest.raises(AddressError, match="enroll makes the coordinator its own authority"):
            protection("0.0.0.0:0", enroll="0.0.0.0:1", **files)
    for files in ((None, *pair), (pair[0], None, None)):
        with pytest.raises(LinkError, match="insecure means plain text"):
            client.credentials("server:1", *files, insecure=True)


def test_a_devices_own_certificate_that_has_ended_is_named(certify, authority) -> None:
    late = ended(certify("late", by=authority), authority)
    with pytest.raises(LinkError, match="this certificate has expired"):
        client.credentials("server:1", authority[0], *late, insecure=False)


def test_an_authority_without_a_certificate_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("#!/bin/sh")
    with pytest.raises(LinkError, match=r"ca\.pem: no certificate of an authority"):
        client.credentials("localhost:1", path, None, None, insecure=False)
