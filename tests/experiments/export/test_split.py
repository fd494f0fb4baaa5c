"""A run's model for several devices, answered by real processes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diastole
from diastole.client.asking import Fused, Manifest, listening
from diastole.experiments.export.files import predictor
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

DOCUMENT = {
    "data": {"proxy": 100},
    "rounds": {"count": 3, "evaluate_every": 3},
    "tiers": {"all": {"devices": 3, "width": 1.0}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    simulate(make_federation(Simulation.parse(DOCUMENT, "test"))).save(folder, ())
    return folder


@pytest.fixture
def parts(run: Any, folder: Path, tmp_path: Path) -> Path:
    code, out, error = run(
        *("export", folder, "--split", "2", "--format", "torchscript", "--keep", "0.75"),
        *("--out", tmp_path / "split", "--json"),
    )
    assert code == 0, error
    forms = json.loads(out)["card"]["forms"]
    assert forms[-1]["form"] == "all parts, side by side"
    assert forms[-1]["test"] > forms[0]["test"] - 0.08
    return tmp_path / "split"


@pytest.mark.slow
def test_a_model_in_two_parts_answers_nearly_as_the_whole(folder: Path, parts: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(parts / "split.json")
    assert [part.classes for part in manifest.parts] == [[*range(5)], [*range(5, 10)]]
    one, other = (predictor(parts / f"part-{number}.pt") for number in (1, 2))
    assert other.label == "width 1, classes 5 to 9"
    x = make_federation(Simulation.parse(DOCUMENT, "test")).run.test.x
    with listening("127.0.0.1:0", one) as here, listening("127.0.0.1:0", other) as there:
        fused = Fused(parts / "split.json", [f"127.0.0.1:{port}" for port in (here, there)], [None, None])
        same = fused.outputs(x).argmax(1) == diastole.load(folder)(x).argmax(1)
    assert float(same.float().mean()) > 0.85


@pytest.mark.slow
def test_real_processes_answer_for_the_parts(run: Any, parts: Path, tmp_path: Path) -> None:
    test = make_federation(Simulation.parse(DOCUMENT, "test")).run.test
    np.savez(tmp_path / "mine.npz", x=test.x.numpy(), y=test.y.numpy())
    card = json.loads((parts / "split.json").read_text())["card"]
    command = [sys.executable, "-m", "diastole.cli.main", "infer", "--listen", "127.0.0.1:0"]
    processes = [
        subprocess.Popen([*command, "--model", str(parts / f"part-{number}.pt")], stdout=subprocess.PIPE, text=True)
        for number in (1, 2)
    ]
    try:
        places = list[str]()
        for process in processes:
            assert process.stdout is not None
            found = re.search(r"answers at (\S+)", process.stdout.readline())
            assert found is not None
            places.append(found[1])
        where = [option for place in places for option in ("--at", place)]
        code, out, _ = run("infer", "--split", parts / "split.json", *where, "--data", tmp_path / "mine.npz", "--json")
        assert code == 0
        told = json.loads(out)
        assert told["examples"] == len(test)
        assert told["scores"]["accuracy"] == pytest.approx(card["forms"][-1]["test"])
        assert len(told["labels"]) == len(test)
    finally:
        for process in processes:
            process.terminate()
    assert [process.wait(30) for process in processes] == [0, 0]


def test_an_exported_file_is_answered_with(run: Any, parts: Path, folder: Path, tmp_path: Path) -> None:
    x = torch.randn(4, 1, 8, 8)
    np.savez(tmp_path / "mine.npz", x=x.numpy())
    code, out, _ = run("infer", "--model", parts / "part-1.pt", "--data", tmp_path / "mine.npz", "--json")
    assert code == 0
    assert json.loads(out)["model"] == "width 1, classes 0 to 4"
    (parts / "part-1.pt.json").unlink()
    code, _, error = run("infer", "--model", parts / "part-1.pt", "--data", tmp_path / "mine.npz")
    assert code == 2
    assert "cannot be read with its card part-1.pt.json" in error
    (parts / "part-2.pt").write_bytes(b"no model")
    code, _, error = run("infer", "--model", parts / "part-2.pt", "--data", tmp_path / "mine.npz")
    assert code == 2
    assert "no model that can be run" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--split", "7", "--format", "torchscript"), "7 parts of 10 classes: 2 to 5 parts"),
        (("--split", "2"), "it goes with another --format"),
        (("--split", "2", "--format", "torchscript", "--compress", "depth"), "makes its parts smaller by itself"),
    ],
)
def test_what_cannot_be_split_is_one_line(run: Any, folder: Path, options: tuple[str, ...], said: str) -> None:
    code, _, error = run("export", folder, *options)
    assert code == 2
    assert said in error
    assert error.count("\n") == 1


def test_other_machines_are_not_answered_in_plain_text(run: Any, folder: Path) -> None:
    code, _, error = run("infer", "--model", folder / "model.safetensors", "--listen", "0.0.0.0:0")
    assert code == 2
    assert "are answered over TLS" in error
