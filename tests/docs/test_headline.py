"""The headline tables, from results that are written here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "packaging" / "headline.py"


def costs(method: str) -> dict[str, Any]:
    of = {"width": (100, 50, 8.0), "b": (80, 50, 10.0), "exclusive": (10, 5, 1.0)}[method]
    return {key: {"mean": value} for key, value in zip(("bytes", "macs", "training_seconds"), of, strict=True)}


def part(scores: dict[str, tuple[float, int]], differences: dict[str, tuple[float, float | None]]) -> dict[str, Any]:
    key = "mean_tier_accuracy"
    return {
        "summary": {m: {key: {"mean": mean, "count": count}, **costs(m)} for m, (mean, count) in scores.items()}
        | {"exclusive": costs("exclusive")},
        "differences": {m: {key: {"mean": mean, "error": error}} for m, (mean, error) in differences.items()}
        | {m: {} for m in (*scores, "exclusive") if m not in differences},
    }


def result(folder: Path, *ways: dict[str, Any]) -> str:
    first, *equal = ways
    folder.mkdir()
    equals = [{"by": by, **way} for by, way in zip(("bytes", "macs"), equal, strict=True)]
    (folder / "comparison.json").write_text(json.dumps({"seeds": [0, 1], **first, "equal": equals}))
    return str(folder)


def test_each_way_of_being_equal_has_a_table_of_all_studies(tmp_path: Path) -> None:
    both = part({"width": (0.9, 2), "b": (0.8512, 2)}, {"width": (0.0488, 0.0123), "b": (-0.0488, None)})
    short = part({"width": (0.7, 2), "b": (0.9, 1)}, {})
    one, two = result(tmp_path / "one", both, both, short), result(tmp_path / "two", both, short, both)
    command = [sys.executable, SCRIPT, f"first={one}", f"second={two}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split("\n\n") == [
        "| after as many rounds | first | second | mean |\n| --- | ---: | ---: | ---: |\n"
        "| width | 90.0<br>(+4.9 ± 1.2) | 90.0<br>(+4.9 ± 1.2) | 90.0 |\n"
        "| b | 85.1<br>(-4.9) | 85.1<br>(-4.9) | 85.1 |",
        # Who lacks a seed has no cell, and who lacks a cell no mean.
        "| after as many bytes | first | second | mean |\n| --- | ---: | ---: | ---: |\n"
        "| width | 90.0<br>(+4.9 ± 1.2) | 70.0 | 80.0 |\n| b | 85.1<br>(-4.9) | - | - |",
        "| after as many multiply-accumulates | first | second | mean |\n| --- | ---: | ---: | ---: |\n"
        "| width | 70.0 | 90.0<br>(+4.9 ± 1.2) | 80.0 |\n| b | - | 85.1<br>(-4.9) | - |",
        "| bytes, MACs, seconds | first | second |\n| --- | ---: | ---: |\n"
        "| width | 1.00, 1.00, 1.00 | 1.00, 1.00, 1.00 |\n"
        "| b | 0.80, 1.00, 1.25 | 0.80, 1.00, 1.25 |\n| exclusive | 0.10, 0.10, 0.12 | 0.10, 0.10, 0.12 |\n",
    ]


def test_a_folder_without_a_comparison_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, f"first={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"'first={tmp_path}': ")
    assert line.endswith("NAME=FOLDER is accepted, of a folder that diastole compare --equal wrote")
