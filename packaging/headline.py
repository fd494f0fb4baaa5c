"""The headline tables of docs/comparisons.md, from the results of studies.

`python packaging/headline.py NAME=FOLDER ...` prints them, a column for each folder of `diastole compare --equal`.

One table for each way of being equal: as many rounds, bytes, multiply-accumulates. A cell is the accuracy of the mean
of the tiers, in %, and behind it the difference from the best of the others, seed by seed, with its standard error. A
last table has what a run costs after as many rounds, beside HeteroFL's.
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

KEY, ANCHOR = "mean_tier_accuracy", "width"
WAYS = {"": "as many rounds", "bytes": "as many bytes", "macs": "as many multiply-accumulates"}
COSTS = ("bytes", "macs", "training_seconds")


def read(folder: Path) -> dict[str, dict[str, tuple[float, str]]]:
    """Return, by way and method, the accuracy of the mean of the tiers in % and its cell.

    A method counts if each of its seeds has a score.
    """
    document = json.loads((folder / "comparison.json").read_text())
    seeds, found = len(document["seeds"]), {}
    for way, part in {"": document, **{part["by"]: part for part in document["equal"]}}.items():
        found[way] = {
            method: _cell(summary[KEY], part["differences"][method].get(KEY))
            for method, summary in part["summary"].items()
            if KEY in summary and summary[KEY]["count"] == seeds
        }
    return found


def _cell(score: dict[str, Any], difference: dict[str, Any] | None) -> tuple[float, str]:
    mean = 100 * score["mean"]
    if difference is None:
        return mean, f"{mean:.1f}"
    error = f" ± {100 * difference['error']:.1f}" if difference.get("error") is not None else ""
    return mean, f"{mean:.1f}<br>({100 * difference['mean']:+.1f}{error})"


def table(way: str, results: dict[str, dict[str, dict[str, tuple[float, str]]]]) -> str:
    """Return one table in Markdown: methods by studies, and the mean of a method that is in all of them."""
    methods = list(dict.fromkeys(method for result in results.values() for method in result[way]))
    lines = [f"| after {WAYS[way]} | {' | '.join(results)} | mean |", "| --- |" + " ---: |" * (len(results) + 1)]
    for method in methods:
        there = [result[way].get(method) for result in results.values()]
        scores = [cell[0] for cell in there if cell]
        mean = f"{fmean(scores):.1f}" if len(scores) == len(there) else "-"
        lines.append(f"| {method} | {' | '.join(cell[1] if cell else '-' for cell in there)} | {mean} |")
    return "\n".join(lines)


def costs(folders: dict[str, Path]) -> str:
    """Return the bytes, multiply-accumulates and seconds of training of all devices; those of `ANCHOR` are 1."""
    summaries = {name: json.loads((path / "comparison.json").read_text())["summary"] for name, path in folders.items()}
    methods = list(dict.fromkeys(method for summary in summaries.values() for method in summary))
    lines = [f"| bytes, MACs, seconds | {' | '.join(folders)} |", "| --- |" + " ---: |" * len(folders)]
    for method in methods:
        cells = []
        for summary in summaries.values():
            there = [(summary[method][key]["mean"], summary[ANCHOR][key]["mean"]) for key in COSTS if method in summary]
            cells.append(", ".join(f"{mine / theirs:.2f}" for mine, theirs in there) or "-")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables of the studies that are named."""
    named = {name: Path(folder) for name, folder in (word.split("=", 1) for word in sys.argv[1:])}
    results = {name: read(folder) for name, folder in named.items()}
    sys.stdout.write("\n\n".join([*(table(way, results) for way in WAYS), costs(named)]) + "\n")


if __name__ == "__main__":
    main()
