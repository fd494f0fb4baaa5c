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
