"""A coordinator, and agents with it, that are killed again and again: the model has the bits of an undisturbed run."""

import json
import socket
from pathlib import Path

import pytest
import torch
from federated import DOCUMENT, killed

from diastole.client.model_file import ModelFile
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation


@pytest.mark.slow
@pytest.mark.parametrize("codecs", [{}, {"up": "int8", "down": "delta:int8"}], ids=["exact", "coded"])
def test_twenty_kills_change_nothing(tmp_path: Path, codecs: dict[str, str]) -> None:
    document = DOCUMENT | ({"codecs": codecs} if codecs else {})
    expected = simulate(make_federation(Simulation.parse(document, "test")))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done, codes = killed(port, tmp_path, 11, 20, document)
    assert done == 20
    assert set(codes) == {0}
    # Some kills came when updates had been accepted.
    assert len((tmp_path / "state" / "kept").read_text().split()) > 1
    latest = tmp_path / "state" / "latest"
    found = ModelFile.read(latest / "model.safetensors")
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in found.state.items())
    report = json.loads((latest / "report.json").read_text())
    assert [row["updates"] for row in report["rounds"]] == [row.updates for row in expected.rounds]
    assert {row["device"]: row["updates"] for row in report["devices"]} == dict.fromkeys(
        expected.accounts, len(expected.rounds)
    )
    # One run, from the first process to the last; of its updates nothing is left.
    assert len(list((tmp_path / "state" / "runs").iterdir())) == 1
    assert [path for path in (tmp_path / "state" / "objects").rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_runs_side_by_side_have_their_own_bits_through_kills(tmp_path: Path) -> None:
    other = DOCUMENT | {"training": {"epochs": 2, "learning_rate": 0.01}, "server": {"name": "fedavg"}}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done, codes = killed(port, tmp_path, 12, 6, DOCUMENT, other)
    assert done > 2
    assert set(codes) == {0}
    found = [ModelFile.read(path / "model.safetensors").state for path in (tmp_path / "state" / "runs").iterdir()]
    assert len(found) == 2
    for document in (DOCUMENT, other):
        expected = simulate(make_federation(Simulation.parse(document, "test"))).state
        assert any(all(torch.equal(tensor, expected[name]) for name, tensor in state.items()) for state in found)
