"""A device enrolls with the commands of the documentation, and needs no option after that."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diastole.client import data
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.server.store.sql import SqlStore
from diastole.simulations.devices import make_federation
from diastole.simulations.simulation import Simulation

Run = Callable[..., tuple[int, str, str]]
DOCUMENT = {
    "data": {"proxy": 40},
    "rounds": {"count": 1, "patience": 60},
    "tiers": {"small": {"devices": 1, "width": 0.25}},
}


def serve(state: Path, port: int = 0) -> Serving:
    here = "127.0.0.1:0"
    made = make_run(Experiment.parse(DOCUMENT, "test"))
    return Serving(made, f"127.0.0.1:{port}", state, admin=here, enroll=here, figures=(), fresh=True)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("shards") / "shard.npz"
    (device,) = make_federation(Simulation.parse(DOCUMENT, "test")).devices.values()
    data.save(path, device.examples)
    return str(path)


def test_a_device_enrolls_once_and_joins_without_further_options(run: Run, tmp_path: Path, shard: str) -> None:
    state, own = tmp_path / "state", ("--state", str(tmp_path / "agent"), "--tier", "small")
    with serve(state) as serving:
        admin = "--address", f"127.0.0.1:{serving.admin_port}"
        allowed = *admin, "--token-file", str(state / "admin.token")
        for call in (("status",), ("devices",), ("stop",), ("watch",), ("enroll", "pi-7"), ("revoke", "pi-7")):
            code, out, err = run("admin", *call, *admin)
            assert (code, out) == (4, "")
            assert "carries no admin token" in err
        code, out, err = run("admin", "enroll", "pi-7", *allowed)
        assert (code, err) == (0, "")
        address = f"127.0.0.1:{serving.port}"
        assert run("join", address, "--data", shard, *own, "--enroll", out.strip(), "--name", "pi-8")[0] != 0
        code, told, err = run("join", address, "--data", shard, *own, "--enroll", out.strip())
        assert code == 0, err
        assert "enrolled as pi-7" in told
        serving.wait(60)
    with serve(state, serving.port) as serving:
        code, told, err = run("join", address, "--data", shard, *own)
        assert code == 0, err
        assert f"joining {address} as pi-7" in told
        serving.wait(60)
    store = SqlStore(f"sqlite:///{state / 'coordinator.sqlite'}")
    lines = [(line.call, line.detail, line.outcome) for line in store.audited((state / "lock").read_text())]
    store.close()
    assert lines == [("Enroll", "pi-7", "enrolled"), ("Invite", "pi-7", "token made")]
