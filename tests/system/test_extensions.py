"""Packages of others bring methods and data: what the documentation shows, and one that is installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
[data]
proxy = 20
[tiers]
large = { devices = 2, width = 1.0 }
small = { devices = 2, width = 0.5 }
[rounds]
count = 2
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that finds what is in `folder`."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "diastole.cli.main", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def simulated(folder: Path, *changes: str) -> dict[str, object]:
    (folder / "experiment.toml").write_text(EXPERIMENT)
    sets = [part for change in changes for part in ("--set", change)]
    done = run(folder, "simulate", "experiment.toml", "--out", "report", "--json", *sets)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_page_on_methods_of_your_own_is_a_whole_method(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your-own-method.md").read_text()
    assert len(page.splitlines()) < 80
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (entry,) = re.findall(r"```toml\n\[project.entry-points.\"diastole.methods\"\]\n(.*?)```", page, re.DOTALL)
    (tmp_path / "federated_dropout.py").write_text(code)
    about = tmp_path / "federated_dropout-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: federated-dropout\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[diastole.methods]\n{entry.replace(chr(34), '')}")

    loop, processes = (
        simulated(tmp_path, "method=federated-dropout", f"engine={engine}") for engine in ("loop", "processes")
    )

    sizes = [tier["spec"] for tier in loop["tiers"]]  # type: ignore[attr-defined]
    assert sizes == ["federated-dropout 1", "federated-dropout 0.5"]
    accuracies = [round_["accuracy"] for round_ in loop["rounds"]]  # type: ignore[attr-defined]
    assert accuracies == [round_["accuracy"] for round_ in processes["rounds"]]  # type: ignore[attr-defined]
    assert accuracies[-1] > 0.3
    unknown = run(tmp_path, "simulate", "experiment.toml", "--set", "method=none")
    assert "federated-dropout" in unknown.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that somebody else's package is installed in, and nothing beside it."""
    folder = tmp_path_factory.mktemp("installed")
    source = ROOT / "tests" / "thirdparty"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    copied = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "acme_federated.py"):
        (copied / name).write_text((source / name).read_text())
    done = subprocess.run([*pip, "--target", str(folder), str(copied)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_an_installed_package_brings_a_method_and_a_data_set(installed: Path) -> None:
    report = simulated(installed, "method=last-channels", "data.name=stripes")

    assert [tier["spec"] for tier in report["tiers"]] == ["last-channels 1", "last-channels 0.5"]  # type: ignore[attr-defined]
    assert report["rounds"][-1]["accuracy"] > 0.8  # type: ignore[index]


def test_an_installed_package_brings_a_network(installed: Path) -> None:
    model = ("model.name=perceptron", "model.widths=[32]")
    report = simulated(installed, "method=last-channels", "data.name=stripes", *model)

    assert [tier["parameters"] for tier in report["tiers"]] == [32 * 65 + 2 * 33, 16 * 65 + 2 * 17]  # type: ignore[attr-defined]
    assert report["rounds"][-1]["accuracy"] > 0.8  # type: ignore[index]


def test_without_the_package_its_names_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    done = run(tmp_path, "simulate", "experiment.toml", "--set", "method=last-channels")
    assert done.returncode == 2
    assert "last-channels" in done.stderr
    assert "Traceback" not in done.stderr
