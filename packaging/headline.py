"""The headline tables of docs/comparisons.md, from the results of studies.

`python packaging/headline.py NAME=FOLDER ...` prints them, a column for each folder of `diastole compare --equal`.

One table for each way of being equal: as many rounds, bytes, multiply-accumulates. A cell is the accuracy of the mean
of the tiers, in %, and behind it the difference from the best of the others, seed by seed, with its standard error. A
last table has what a run costs after as many rounds, beside HeteroFL's.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from diastole.cli.grid import DASH, Grid

KEY, ANCHOR = "mean_tier_accuracy", "width"
WAYS = {"": "as many rounds", "bytes": "as many bytes", "macs": "as many multiply-accumulates"}
COSTS = ("bytes", "macs", "training_seconds")

Documents = Mapping[str, Any]
"""What `comparison.json` says, by the names of the columns."""


def table(way: str, documents: Documents) -> Grid:
    """Return one table: methods by studies, and the mean of a method that is in all of them.

    A method is in a study if each of its seeds has a score there.
    """
    found = {name: _scores(way, document) for name, document in documents.items()}
    rows = []
    for method in dict.fromkeys(method for scores in found.values() for method in scores):
        there = [scores.get(method) for scores in found.values()]
        means = [cell[0] for cell in there if cell]
        mean = f"{fmean(means):.1f}" if len(means) == len(there) else DASH
        rows.append([method, *(cell[1] if cell else DASH for cell in there), mean])
    return Grid("", [f"after {WAYS[way]}", *found, "mean"], rows)


def _scores(way: str, document: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Return, by method, the accuracy of the mean of the tiers in % and its cell."""
    part = {"": document, **{equal["by"]: equal for equal in document["equal"]}}[way]
    return {
        method: _cell(summary[KEY], part["differences"][method].get(KEY))
        for method, summary in part["summary"].items()
        if KEY in summary and summary[KEY]["count"] == len(document["seeds"])
    }


def _cell(score: dict[str, Any], difference: dict[str, Any] | None) -> tuple[float, str]:
    mean = 100 * score["mean"]
    if difference is None:
        return mean, f"{mean:.1f}"
    error = f" ± {100 * difference['error']:.1f}" if difference.get("error") is not None else ""
    return mean, f"{mean:.1f}<br>({100 * difference['mean']:+.1f}{error})"


def costs(documents: Documents) -> Grid:
    """Return the bytes, multiply-accumulates and seconds of training of all devices; those of `ANCHOR` are 1."""
    summaries = [document["summary"] for document in documents.values()]
    rows = []
    for method in dict.fromkeys(method for summary in summaries for method in summary):
        cells = []
        for summary in summaries:
            there = [(summary[method][key]["mean"], summary[ANCHOR][key]["mean"]) for key in COSTS if method in summary]
            cells.append(", ".join(f"{mine / theirs:.2f}" for mine, theirs in there) or DASH)
        rows.append([method, *cells])
    return Grid("", ["bytes, MACs, seconds", *documents], rows)


def main() -> None:
    """Print the tables of the studies that are named."""
    documents = {}
    for word in sys.argv[1:]:
        name, _, folder = word.partition("=")
        try:
            documents[name] = json.loads((Path(folder) / "comparison.json").read_text())
        except (OSError, ValueError) as error:
            sys.exit(f"{word!r}: {error}; NAME=FOLDER is accepted, of a folder that diastole compare --equal wrote")
    grids = [*(table(way, documents) for way in WAYS), costs(documents)]
    sys.stdout.write("\n".join(grid.markdown() for grid in grids))


if __name__ == "__main__":
    main()
