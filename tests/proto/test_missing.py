"""What is said where an optional library is not there."""

import re
import tomllib
from pathlib import Path

import pytest

from diastole.proto.errors import DiastoleError
from diastole.proto.missing import needed

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("api", "benchmarks", "cli", "client", "experiments", "models", "proto", "server", "simulations")


class LostError(DiastoleError):
    pass


def test_a_library_that_is_not_there_is_one_line() -> None:
    says = r"^pets/a\.png: Pillow is not installed; pip install 'diastole\[simulation\]'$"
    with pytest.raises(LostError, match=says), needed(LostError, "pets/a.png", "Pillow", "diastole[simulation]"):
        import a_library_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_a_library_that_cannot_be_imported_says_why(kind: type[Exception]) -> None:
    says = r"^mlflow cannot be imported \(no such symbol, in this file\); pip install mlflow$"
    with pytest.raises(LostError, match=says), needed(LostError, "", "mlflow", "mlflow"):
        raise kind("no such symbol,\nin this file")


def test_what_is_there_is_imported() -> None:
    with needed(LostError, "", "json", "diastole"):
        import json
    assert json.loads("1") == 1


def test_every_extra_that_is_named_is_one_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    places = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "docs/notebook.ipynb", ROOT / "README.md"]
    named = {
        extra.strip()
        for path in (*places, *pages)
        for group in re.findall(r"diastole\[([a-z, -]+)\]", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert {"tables", "coordinator"} <= named <= set(extras)
