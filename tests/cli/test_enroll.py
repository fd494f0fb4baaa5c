"""A device enrolls with the commands of the documentation, and needs no option after that."""

import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from onedevice import DOCUMENT, HERE, serve
from rich.console import Console

from diastole.cli.calling import TOKEN_FILE, calling, operators_folder
from diastole.cli.logs import LogFormat, LogLevel, logging_to
from diastole.client import data
from diastole.client.enrolling import enroll
from diastole.client.errors import RefusedError
from diastole.client.identities import Identities
from diastole.proto import identity
from diastole.proto.invitation import Token
from diastole.server.store.sql import SqlStore
from diastole.simulations.devices import make_federation
from diastole.simulations.simulation import Simulation
from diastole.v1 import device_pb2

Run = Callable[..., tuple[int, str, str]]
NAMES = {"pi-7": (), "alice": ("--operator",)}
CALLS = (
    ("runs", "list"),
    ("devices", "list"),
    ("runs", "stop", "--yes"),
    ("runs", "watch"),
    ("enroll", "pi-7"),
    ("devices", "revoke", "pi-7", "--yes"),
)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("shards") / "shard.npz"
    (device,) = make_federation(Simulation.parse(DOCUMENT, "test")).devices.values()
    data.save(path, device.examples)
    return str(path)


@pytest.mark.slow
def test_a_device_enrolls_once_and_joins_without_further_options(run: Run, tmp_path: Path, shard: str) -> None:
    state = tmp_path / "state"
    own = "--state", str(tmp_path / "agent"), "--tier", "small", "--plan", "reference"
    logged = logging_to(Console(file=io.StringIO()), LogFormat.JSON, LogLevel.DEBUG, tmp_path / "serve.log")
    with logged, serve(state, admin=HERE, enroll=HERE, fresh=True) as serving:
        admin = "--address", f"127.0.0.1:{serving.admin_port}"
        allowed = *admin, "--token-file", str(state / "admin.token")
        for call in CALLS:
            code, out, err = run("admin", *call, *admin)
            assert (code, out) == (4, "")
            assert "carries no admin token" in err
        assert run("admin", "health", *admin) == (0, "serving\n", "")
        code, out, err = run("admin", "enroll", "pi-7", *allowed)
        assert (code, err) == (0, "")
        address = f"127.0.0.1:{serving.port}"
        assert run("join", address, "--data", shard, *own, "--enroll", out.strip(), "--name", "pi-8")[0] != 0
        log = "--log-level", "debug", "--log-file", tmp_path / "agent.log"
        code, told, err = run("join", address, "--data", shard, *own, *log, "--enroll", out.strip())
        assert code == 0, err
        assert "enrolled as pi-7" in told
        serving.wait(60)
    token = Token.parse(out.strip())
    secrets = out.strip(), token.secret, (state / "admin.token").read_text().strip(), "PRIVATE KEY"
    for name in ("serve.log", "agent.log"):
        text = (tmp_path / name).read_text()
        assert not [secret for secret in secrets if secret in text]
        assert "pi-7" in text
    with serve(state, f"127.0.0.1:{serving.port}", admin=HERE, enroll=HERE, fresh=True) as serving:
        used = "--enroll-file", tmp_path / "token"
        code, _, err = run("join", address, "--data", shard, "--state", tmp_path / "other", *used)
        assert (code, "no token can be read" in err) == (3, True)
        # Who has a certificate does not read it.
        code, told, err = run("join", address, "--data", shard, *own, *used)
        assert code == 0, err
        assert f"joining {address} as pi-7" in told
        serving.wait(60)
    store = SqlStore(f"sqlite:///{state / 'coordinator.sqlite'}")
    refused = "this call carries no admin token, or not this coordinator's; diastole admin --token-file takes its file"
    lines = [(line.call, line.detail, line.outcome) for line in store.audited((state / "lock").read_text())]
    store.close()
    assert lines[:3] == [
        ("Enroll", "pi-7", "enrolled"),
        ("Invite", "name=pi-7, seconds=3600.0", "done"),
        ("Revoke", "name=pi-7", refused),
    ]
    assert [(call, outcome) for call, _, outcome in reversed(lines[2:])] == [
        (call, refused) for call in ("ListRuns", "ListDevices", "Stop", "Watch", "Invite", "Revoke")
    ]


def test_operators_of_other_machines_show_certificates_and_every_call_is_in_the_audit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "user"))
    state = tmp_path / "state"
    with serve(state, admin="0.0.0.0:0", enroll=HERE, fresh=True) as serving:
        there = "--address", f"127.0.0.1:{serving.admin_port}"
        local = *there, "--token-file", state / "admin.token"
        assert run("admin", "runs", "list", *there)[0] == 3
        tokens = {name: run("admin", "enroll", name, *more, *local)[1].strip() for name, more in NAMES.items()}
        code, _, err = run("join", f"127.0.0.1:{serving.port}", "--data", shard, "--enroll", tokens["alice"])
        assert (code, "diastole admin login takes it" in err) == (2, True)
        assert run("admin", "login", tokens["pi-7"], *there)[0] == 2
        assert run("admin", "login", tokens["alice"], *there)[0] == 0
        assert run("admin", "runs", "list", *there)[0] == 0
        # By another name of the same machine, too.
        assert run("admin", "devices", "list", "--address", f"localhost:{serving.admin_port}")[0] == 0
        code, out, _ = run("admin", "audit", "--json", *there)
        lines = [(line["who"], line["call"], line["detail"]) for line in json.loads(out)]
        assert lines[:2] == [("operator:alice", "ListDevices", ""), ("operator:alice", "ListRuns", "")]
        assert ("operator:local", "Invite", "name=alice, seconds=3600.0, operator=True") in lines
        # In time, a command gets the next certificate by the one before.
        before = Identities(operators_folder()).at(there[1])
        with monkeypatch.context() as late:
            late.setattr(identity, "RENEWED_AFTER", timedelta(0))
            assert run("admin", "runs", "list", *there) == (0, run("admin", "runs", "list", *local)[1], "")
        assert Identities(operators_folder()).at(there[1]) != before
        lines = [(line["who"], line["call"]) for line in json.loads(run("admin", "audit", "--json", *there)[1])]
        assert lines[:3] == [
            ("operator:local", "ListRuns"),
            ("operator:alice", "ListRuns"),
            ("operator:alice", "Renew"),
        ]
        with pytest.raises(RefusedError, match="of 'operator:alice', and only"), calling(there[1], TOKEN_FILE) as stub:
            stub.Renew(device_pb2.RenewRequest(name="operator:local"), timeout=10)
        assert run("admin", "operators", "revoke", "alice", "--yes", *local)[0] == 0
        code, _, err = run("admin", "runs", "stop", "--yes", *there)
        assert (code, "no operator's, or does not count any more" in err) == (4, True)
        assert "no operator's" in run("admin", "audit", *local)[1]
        # A device is no operator.
        device = enroll(tmp_path, f"127.0.0.1:{serving.port}", Token.parse(tokens["pi-7"]))
        (tmp_path / "device.json").write_text(device.text())
        assert run("admin", "runs", "list", *there, "--token-file", tmp_path / "device.json")[0] == 4


def test_a_token_for_operators_is_never_sent_in_plain_text_to_another_machine(run: Run, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    code, _, err = run("admin", "runs", "list", "--address", "192.0.2.1:7701", "--token-file", tmp_path / "token")
    assert (code, "operators of other machines enroll first" in err) == (4, True)
