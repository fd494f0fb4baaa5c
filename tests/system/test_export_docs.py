"""Every command of docs/export.md, as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.S)
    for line in block.splitlines()
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 10
    assert all(
        line.startswith(("diastole export ", "diastole simulate ", "diastole infer ", "python ")) for line in COMMANDS
    )


@pytest.mark.slow
def test_every_command_does_what_the_page_says(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("simulations", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    test = make_run(Experiment.load(Path("simulations/examples/digits.toml"))).test
    np.savez("shard.npz", x=test.x.numpy(), y=test.y.numpy())
    started = list[subprocess.Popen[str]]()
    try:
        for line in COMMANDS:
            program, *options = shlex.split(line.removesuffix(" &"))
            if program == "python":
                done = subprocess.run([sys.executable, *options], capture_output=True, text=True, check=True)
                labels = numbers(done.stdout)
                assert np.mean(np.array(labels) == test.y.numpy()) > 0.5
            elif line.endswith(" &"):
                command = [sys.executable, "-m", "diastole.cli.main", *options]
                started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                assert "answers at" in (started[-1].stdout or sys.stdin).readline()
            else:
                more = ["--figures", ""] if options[0] == "simulate" else []
                code, out, error = run(*options, *more)
                assert code == 0, (line, error)
                if "--split" in options and options[0] == "infer":
                    assert "accuracy" in out
    finally:
        for process in started:
            process.terminate()
            process.wait(30)
    names = ("small.onnx", "int8.onnx", "exits.onnx", "thin.onnx", "shallow.onnx", "parts/split.json")
    assert all((tmp_path / name).exists() for name in names)


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.strip("[] \n").split(",")]
