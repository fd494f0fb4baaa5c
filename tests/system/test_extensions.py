"""Packages of others bring methods and data: what the documentation shows, and one that is installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, blocks

from diastole.experiments.errors import ExperimentError
from diastole.simulations.simulation import Simulation

EXPERIMENT = """
[data]
proxy = 20
[tiers]
large = { devices = 2, width = 1.0 }
small = { devices = 2, width = 0.5 }
[rounds]
count = 2
"""


SIMULATE = """
import json, sys
import diastole
made = diastole.Experiment.load("experiment.toml")
for changes in json.loads(sys.argv[1]):
    try:
        result = diastole.simulate(made.changed(**changes))
        print(json.dumps(result.as_dict()))
    except diastole.DiastoleError as error:
        print(json.dumps(str(error)))
"""


def simulated(folder: Path, *runs: dict[str, object]) -> list[Any]:
    """Return the report of each run, or its error, in a process that finds what is in `folder`."""
    (folder / "experiment.toml").write_text(EXPERIMENT)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", SIMULATE, json.dumps(runs)]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def installed(page: Path, group: str, folder: Path) -> None:
    """Install the file that a page shows, with its entry point."""
    (code,) = blocks(page, "python")
    (entry,) = re.findall(rf"```toml\n\[project.entry-points.\"{group}\"\]\n(.*?)```", page.read_text(), re.DOTALL)
    (folder / code.file).write_text(code.text)
    name = Path(code.file).stem
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{entry.replace(chr(34), '')}")


@pytest.mark.slow
def test_the_page_on_methods_of_your_own_is_a_whole_method(tmp_path: Path) -> None:
    page = ROOT / "docs" / "your-own-method.md"
    assert len(page.read_text().splitlines()) < 80
    installed(page, "diastole.methods", tmp_path)

    method = {"method": "federated-dropout"}
    loop, processes, unknown = simulated(
        tmp_path, method, method | {"engine": "processes", "workers": 1}, {"method": "none"}
    )

    assert [tier["spec"] for tier in loop["tiers"]] == ["federated-dropout 1", "federated-dropout 0.5"]
    accuracies = [round_["accuracy"] for round_ in loop["rounds"]]
    assert accuracies == [round_["accuracy"] for round_ in processes["rounds"]]
    assert accuracies[-1] > 0.3
    assert "federated-dropout" in unknown


@pytest.mark.slow
def test_the_page_on_cohort_rules_of_your_own_is_a_whole_rule(tmp_path: Path) -> None:
    installed(ROOT / "docs" / "your-own-sampler.md", "diastole.samplers", tmp_path)

    drawn = {"rounds__sampler": "rested", "rounds__cohort": 1}
    (loop,) = simulated(tmp_path, drawn | {"rounds__count": 8})

    # Four devices: each has its turn in any four rounds.
    assert [device["updates"] for device in loop["devices"]] == [2, 2, 2, 2]


@pytest.mark.slow
def test_an_installed_package_brings_a_method_a_data_set_and_a_network(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="last-channels"):
        Simulation.parse({"method": "last-channels"}, "test")
    source = ROOT / "tests" / "thirdparty"
    folder, copied = tmp_path / "installed", tmp_path / "source"
    copied.mkdir()
    for name in ("pyproject.toml", "acme_federated.py"):
        (copied / name).write_text((source / name).read_text())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", str(folder), str(copied)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    brought = {"method": "last-channels", "data__name": "stripes"}
    cnn, perceptron = simulated(folder, brought, brought | {"model__name": "perceptron", "model__widths": [32]})

    assert [tier["spec"] for tier in cnn["tiers"]] == ["last-channels 1", "last-channels 0.5"]
    assert cnn["rounds"][-1]["accuracy"] > 0.8
    assert [tier["parameters"] for tier in perceptron["tiers"]] == [32 * 65 + 2 * 33, 16 * 65 + 2 * 17]
    assert perceptron["rounds"][-1]["accuracy"] > 0.8
