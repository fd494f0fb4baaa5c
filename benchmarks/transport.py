"""How fast a large object goes to a device and comes back."""

import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from statistics import median

import grpc

from diastole.benchmarks import bytestream, shared
from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.models import LARGE_CNN, WIDE_CNN
from diastole.benchmarks.peers import FULL, HOST, finish, joined
from diastole.benchmarks.row import Row
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import State, schema_hash
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.proto.payload import encode
from diastole.server.wire.link import GrpcLink

MODULE = "diastole.benchmarks.echo"


def rows(model: ModelConfig = LARGE_CNN, repeats: int = 7, wide: ModelConfig = WIDE_CNN) -> list[Row]:
    """Measure `transport.plain` and `transport.tls`: MB (10^6 bytes) a second of an object, down and up again.

    One device in another process downloads the state of `model` over gRPC on loopback, and uploads it untrained. Time
    runs, at the device, from the calls until the download has been held against its digest and the upload was accepted:
    written to a file, and held against its digest. Objects are made before.

    The baseline of both is a bare gRPC stream of as many bytes both ways in plain text, in pieces of the same size,
    between the same processes by turns (`bytestream.py`).

    `transport.shared` is of an object like the state of `wide` (`shared.py`).

    Raises `BenchmarkError` if the device fails.
    """
    state = initial_state(model, 0)
    data = encode(state)
    found = []
    with tempfile.TemporaryDirectory() as folder, bytestream.serving(data) as port:
        certificate = Path(folder) / "certificate.pem"
        for name, credentials in (("plain", None), ("tls", _credentials(certificate))):
            trusted = str(certificate) if credentials else ""
            times = _measure(model, state, repeats, port, credentials, trusted)
            down, up, bare_down, bare_up = (len(data) / 1e6 / median(each) for each in zip(*times, strict=True))
            value, bare = (
                2 * len(data) / 1e6 / median(map(sum, each))
                for each in ([line[:2] for line in times], [line[2:] for line in times])
            )
            notes = [f"down {down:.0f} MB/s ({bare_down:.0f} bare), up {up:.0f} MB/s ({bare_up:.0f} bare)"]
            found.append(Row.of(f"transport.{name}", value, bare, "MB/s", "higher", notes))
    return [*found, shared.row(wide)]


def _credentials(path: Path) -> grpc.ServerCredentials:
    """Return credentials for loopback, and write their certificate to a file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmark")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    path.write_bytes(certificate)
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return grpc.ssl_server_credentials([(secret, certificate)])


def _measure(
    model: ModelConfig,
    state: State,
    repeats: int,
    port: int,
    credentials: grpc.ServerCredentials | None,
    trusted: str,
) -> list[list[float]]:
    """Return, of each repeat, the seconds down, up, bare down and bare up."""
    link = GrpcLink(f"{HOST}:0", "benchmark", model, schema_hash(state), credentials=credentials)
    command = [sys.executable, "-m", MODULE, f"{HOST}:{link.port}", str(port), trusted]
    times = []
    with joined(link, 1, command, subprocess.PIPE) as process:
        for number in range(1, repeats + 2):
            finish(link, [Task(f"r{number}-echo", number, "echo", FULL, TrainConfig(), 0)], state)
            line = process.stdout.readline() if process.stdout else b""
            times.append([float(word) for word in line.split()])
            if len(times[-1]) != 4:
                raise BenchmarkError(f"the device said {line!r}; it must say four numbers of seconds")
    # The first opens connections and touches memory for the first time.
    return times[1:]
