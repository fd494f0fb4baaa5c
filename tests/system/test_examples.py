"""The example federations of the documentation: their files make data, and the experiment runs on them."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs/examples"
TINY: dict[str, dict[str, int]] = {
    "text": {"files": 6, "test": 2},
    "sensors": {"machines": 6, "others": 2, "windows": 8},
    "segmentation": {"users": 6, "canvases": 4, "test": 4},
}
METRICS = {"text": "accuracy", "sensors": "mae", "segmentation": "iou"}


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == set(TINY)
    page = (ROOT / "docs/examples.md").read_text()
    assert all(f"examples/{name}/" in page for name in TINY)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "sensors" else pytest.mark.slow) for n in TINY])
def test_an_example_makes_its_data_and_runs(
    name: str, run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / name))
    # Each example has a module of this name.
    monkeypatch.delitem(sys.modules, "net", raising=False)
    data = tmp_path / f"{name}.npz"
    _module(EXAMPLES / name / "make.py").make(data, **TINY[name])
    tiers = ["tiers.large.devices=2", "tiers.medium.devices=2", "tiers.small.devices=2"]
    settings = ["rounds.count=2", "rounds.cohort=3", "rounds.evaluate_every=2", *tiers]
    changes = [word for setting in settings for word in ("--set", setting)]
    code, _, err = run(
        "simulate", EXAMPLES / name / "experiment.toml", "--data", data, "--out", tmp_path / "out", *changes
    )
    monkeypatch.delitem(sys.modules, "net", raising=False)
    assert code == 0, err
    report = (tmp_path / "out/report.json").read_text()
    assert f'"{METRICS[name]}"' in report


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"make_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
