"""A comparison's tables of scores: what methods came to, and what each has over the best of the others."""

from collections.abc import Mapping
from dataclasses import dataclass

from diastole.cli.grid import DASH, Grid
from diastole.cli.units import SCORE, SHARE, Unit
from diastole.experiments.comparison.comparison import Comparison, Figures, summary
from diastole.experiments.comparison.spread import CLEAR, Difference, Spread
from diastole.experiments.report.metric import best, is_share

DAGGER = "†"

Columns = Mapping[str, tuple[str, Unit]]
"""By the name of a figure: the head of its column, and how it is written."""


@dataclass(frozen=True, slots=True)
class Table:
    """Scores of methods at one point of their runs.

    Attributes:
        title: of the table.
        figures: by method, for each seed.
        beside: columns behind the scores.
        note: a line below; empty for none.

    """

    title: str
    figures: Figures
    beside: Columns
    note: str = ""


def grids(comparison: Comparison, table: Table) -> list[Grid]:
    """Return a table of the scores by which methods are held against each other, and one of their differences.

    The best of a column is marked if its difference is clear, so that no mark stands without a standard error.
    """
    metric, seeds = comparison.metric, len(comparison.seeds)
    unit = SHARE if is_share(metric) else SCORE
    columns = {name: (_head(name, metric), unit) for name in comparison.scores}
    means, differences = summary(table.figures), comparison.differences(table.figures)
    small = {(method, name) for method in comparison.footnotes for name in _small(comparison, method)}
    rows = []
    for method, row in means.items():
        shown = {name: cell(row.get(name), unit, seeds) for name, (_, unit) in {**columns, **table.beside}.items()}
        rows.append([method, *(_noted(text, (method, name) in small) for name, text in shown.items())])
    marked = set()
    for x, name in enumerate(columns, 1):
        top = best(metric, [row[name].mean for row in means.values() if name in row])
        for y, (method, row) in enumerate(means.items()):
            difference = differences.get(method, {}).get(name)
            if top is not None and name in row and row[name].mean == top and difference and difference.clear(metric):
                marked.add((y, x))
    heads = ["method", *(head for head, _ in {**columns, **table.beside}.values())]
    notes = [table.note] if table.note else []
    notes += [
        f"{DAGGER} {note}" for method, note in comparison.footnotes.items() if any(it == method for it, _ in small)
    ]
    found = [Grid(table.title, heads, rows, marked=frozenset(marked), notes=notes)]
    if differences:
        rows = [
            [method, *(_difference(row.get(name), is_share(metric), seeds) for name in columns)]
            for method, row in differences.items()
        ]
        found.append(Grid(_title(comparison), ["method", *(head for head, _ in columns.values())], rows, notes=[BOLD]))
    return found


BOLD = f"Bold above: the best of its column, if its difference here is more than {CLEAR:g} standard errors."


def cell(spread: Spread | None, unit: Unit, seeds: int) -> str:
    """Return a figure; how many seeds have it, if not all; a dash if none has."""
    if spread is None or spread.mean is None:
        return DASH
    some = f" ({spread.count} of {seeds})" if spread.count < seeds else ""
    return unit.write(spread.mean, spread.deviation) + some


def _head(name: str, metric: str) -> str:
    heads = {metric: "global", f"mean_tier_{metric}": "mean of tiers", f"worst_tier_{metric}": "worst tier"}
    return heads.get(name) or name.partition("/")[2]


def _title(comparison: Comparison) -> str:
    seeds, share = len(comparison.seeds), is_share(comparison.metric)
    against = comparison.against or "the best of the others"
    over = f"mean of {seeds} seeds' differences ± standard error" if seeds > 1 else f"seed {comparison.seeds[0]}"
    return f"Differences from {against}{', points' if share else ''}, {over}"


def _difference(found: Difference | None, share: bool, seeds: int) -> str:
    if found is None or found.mean is None:
        return DASH
    some = f" ({found.count} of {seeds})" if found.count < seeds else ""
    if share:
        return f"{100 * found.mean:+.1f}" + ("" if found.error is None else f" ± {100 * found.error:.1f}") + some
    return f"{found.mean:+.3g}" + ("" if found.error is None else f" ± {found.error:.2g}") + some


def _small(comparison: Comparison, method: str) -> list[str]:
    """Return the scores that are of a smaller size than the global model, at least in part."""
    metric = comparison.metric
    tiers = {
        tier.tier for run in comparison.runs[method] for tier in run.tiers if tier.size and tier.scores != run.scores
    }
    over = (f"mean_tier_{metric}", f"worst_tier_{metric}") if tiers else ()
    return [*(f"{metric}/{tier}" for tier in sorted(tiers)), *over]


def _noted(text: str, noted: bool) -> str:
    return f"{text} {DAGGER}" if noted and text != DASH else text
