"""A deployment with planted faults: real sockets, files and certificates; the doctor names each, and what mends it."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from onedevice import HERE, serve

from diastole.cli.doctor import home
from diastole.client import groups
from diastole.client.enrolling import enroll
from diastole.proto.invitation import Token
from diastole.proto.locks import lock_folder
from diastole.server.wire import device_service

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def found(run: Run, tmp_path: Path) -> Callable[..., dict[str, tuple[str, str]]]:
    """Run the doctor and return the checks that are not well: level and text."""

    def call(*arguments: object, code: int = 6) -> dict[str, tuple[str, str]]:
        ended, out, err = run("doctor", *arguments, "--json")
        assert ended == code, (out, err)
        findings = json.loads(out)
        for each in findings:
            # Whatever is not well has its reason and its remedy.
            assert each["level"] == "ok" or (each["why"] and each["todo"]), each
        bad = [each for each in findings if each["level"] != "ok"]
        return {each["check"]: (each["level"], f"{each['what']}: {each['why']}") for each in bad}

    return call


def certificate(folder: Path, name: str, *, days: float = 30) -> tuple[Path, Path]:
    """Make a certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=365))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return paths


@contextmanager
def listening() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@contextmanager
def speaking_tls(pair: tuple[Path, Path]) -> Iterator[int]:
    """Let somebody show a certificate, and say nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            while True:
                try:
                    with server.accept()[0] as connection, context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(1)
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_five_planted_faults_of_a_coordinator_are_found(
    found: Callable[..., Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    (state / "ca").mkdir(parents=True)
    # A key that others can read, an authority that has ended, a damaged database, a taken port, a key of another
    # certificate, and a container with no memory.
    (state / "admin.token").write_text("secret")
    (state / "admin.token").chmod(0o644)
    ended, _ = certificate(state / "ca", "ca", days=-1)
    assert ended.exists()
    (state / "coordinator.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    one, other = certificate(tmp_path, "one", days=10), certificate(tmp_path, "other")
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("100000000\n")
    (cgroup / "memory.pressure").write_text("some avg10=0.00 avg60=42.00 avg300=0.00 total=1\n")
    monkeypatch.setattr(groups, "CGROUPS", cgroup)
    with listening() as port:
        bad = found(
            "--state",
            state,
            "--listen",
            f"127.0.0.1:{port}",
            "--admin",
            HERE,
            "--tls-cert",
            one[0],
            "--tls-key",
            other[1],
        )
    assert bad["secrets"][0] == bad["coordinator's authority"][0] == bad["database"][0] == "fault"
    assert "has ended" in bad["coordinator's authority"][1]
    assert bad["port of devices"] == ("fault", f"127.0.0.1:{port} is taken: another program listens there")
    assert "does not go with" in bad["certificate's key"][1]
    assert bad["tls-cert"][0] == "warning"
    assert bad["memory"][0] in ("fault", "warning")
    assert len(bad) == 7
    # The same for people: what is wrong comes last, and the last line counts it.
    code, out, err = run("doctor", "--state", state, "--listen", HERE, "--admin", HERE)
    assert code == 6
    assert out.index("ok      clock") < out.index("FAULT   secrets")
    assert f"to do: chmod 600 {state / 'admin.token'}" in out
    assert err.startswith("error: ")
    assert "secret" not in out.replace("secrets", "")


@pytest.mark.slow
def test_a_coordinator_that_runs_is_well_and_one_that_hangs_is_not(
    found: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    with serve(state, admin=HERE) as serving:
        own = "--listen", f"127.0.0.1:{serving.port}", "--admin", f"127.0.0.1:{serving.admin_port}"
        assert found("--state", state, *own, code=0) == {}
        assert found("--state", state, "--listen", HERE, "--admin", "127.0.0.1:1").keys() == {
            "port of operators",
            "coordinator",
        }
    monkeypatch.setattr(home, "SECONDS", 0.5)
    held = lock_folder(state)
    assert held is not None
    with held, listening() as port:
        # Somebody has the folder and the port, and does not answer.
        bad = found("--state", state, "--listen", HERE, "--admin", f"127.0.0.1:{port}")
    assert bad["coordinator"][0] == "fault"
    assert found("--state", state, "--listen", HERE, "--admin", HERE, code=0) == {}
    assert found("--state", tmp_path / "none", "--listen", HERE, "--admin", HERE, code=0).keys() == {"state folder"}


def test_a_device_that_cannot_reach_its_coordinator_learns_why(
    found: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found("--coordinator", "nowhere.invalid:7700").keys() == {"name"}
    with listening() as port:
        pass
    assert "nobody listens" in found("--coordinator", f"127.0.0.1:{port}")["port"][1]
    # What answers is no coordinator.
    ca, _ = certificate(tmp_path, "authority")
    with serve(tmp_path / "state", admin=HERE) as serving:
        address = f"127.0.0.1:{serving.port}"
        assert found("--coordinator", address, code=0) == {}
        assert "speaks no TLS" in found("--coordinator", address, "--tls-ca", ca)["encryption"][1]
        with monkeypatch.context() as late:

            class Clock:
                @staticmethod
                def time() -> float:
                    return time.time() + 7200

            late.setattr(device_service, "time", Clock)
            assert "7200 s behind the coordinator" in found("--coordinator", address)["clock"][1]
        with monkeypatch.context() as older:
            older.setattr(device_service, "VERSION", "0.0.1")
            assert found("--coordinator", address, code=0)["version"][0] == "warning"
    with speaking_tls(certificate(tmp_path, "coordinator.example", days=-2)) as port:
        bad = found("--coordinator", f"localhost:{port}")
        assert "has ended" in bad["coordinator's certificate"][1]
        assert bad["certificate's name"] == ("fault", "is not localhost: the certificate is for coordinator.example")
        assert "TLS" in found("--coordinator", f"localhost:{port}", "--insecure")["encryption"][1]


@pytest.mark.slow
def test_a_device_that_is_not_enrolled_or_not_any_more_learns_how(found: Callable[..., Any], tmp_path: Path) -> None:
    mine, other, state = (tmp_path / name for name in ("mine", "other", "state"))
    for folder in (mine, other):
        folder.mkdir()
    with serve(state, admin=HERE, enroll=HERE) as serving:
        address = f"127.0.0.1:{serving.port}"
        assert found("--coordinator", address).keys() == {"enrollment"}
        token = serving.invite("pi-7")
        assert found("--coordinator", address, "--enroll", token, code=0) == {}
        assert found("--coordinator", address, "--enroll", "nonsense").keys() == {"token"}
        enroll(mine, address, Token.parse(token))
        assert found("--coordinator", address, "--state", mine, code=0) == {}
        # Its operator has asked for a new certificate under that name since: the earlier one does not count.
        enroll(other, address, Token.parse(serving.invite("pi-7")))
        assert found("--coordinator", address, "--state", mine)["enrollment"][0] == "fault"
    with serve(tmp_path / "new", admin=HERE, enroll=HERE) as anew:
        # The coordinator's folder was lost, and it is another one now.
        at = f"127.0.0.1:{anew.port}"
        assert found("--coordinator", at, "--enroll", token).keys() == {"token", "enroll port"}
