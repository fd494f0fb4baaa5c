"""What the README says is what happens."""

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_the_python_example_runs(
    rounds: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "rounds=10," in example
    names: dict[str, Any] = {}
    exec(compile(example.replace("rounds=10,", f"rounds={rounds},"), "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["large", "medium", "small"]
    scores = [float(re.search(r": ([\d.]+)%", line)[1]) for line in lines]  # type: ignore[index]
    assert all(score > (80 if rounds == 10 else 20) for score in scores)
    assert isinstance(names["small"], nn.Module)
    sizes = ("small", "medium", "large")
    counts = [sum(p.numel() for p in names["result"].model(tier=tier).parameters()) for tier in sizes]
    assert counts[0] < counts[1] < counts[2]
    assert f"{counts[0]:,} of the {counts[2]:,} parameters" in example


def test_every_file_it_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        if target != "make":
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
