"""A comparison's tables, for a terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from diastole.cli import compare_scores
from diastole.cli.compare_scores import Columns, Table, cell
from diastole.cli.grid import DASH, Grid
from diastole.cli.units import BYTES, COUNT, NUMBER, SCORE, SECONDS, SHARE
from diastole.experiments.comparison.comparison import REFERENCE, Comparison
from diastole.experiments.comparison.equal import Equal
from diastole.experiments.comparison.spread import Spread
from diastole.experiments.report.metric import heading, is_share
from diastole.models.metrics import LOSS, shown, title

SERVED: Columns = {"served_devices": ("devices served", NUMBER)}
SPENT: Columns = {"rounds": ("rounds", NUMBER), "share": ("of the allowance", SHARE)}
EXCEPT = " where the values of a method say no other"
KINDS = {"bytes": ("bytes", BYTES), "macs": ("MACs", COUNT)}


def grids(comparison: Comparison) -> list[Grid]:
    """Return the tables of values of the methods' own, of scores and their differences, and of costs.

    Figures are mean ± standard deviation over the seeds, differences mean ± standard error. Scores and differences have
    a table each after the same rounds, and for each kind of spending that was made equal.
    """
    over, metric = _over(comparison.seeds), comparison.metric
    what, rounds = f"{heading(metric)} on the test set", f"{comparison.experiment['rounds']['count']} rounds"
    tables = [Table(f"{what} after {rounds}, {over}", comparison.figures(), SERVED)]
    for equal in comparison.equal:
        as_many = f"after as many {KINDS[equal.by][0]} as {equal.anchor} in {rounds}"
        tables.append(Table(f"{what} {as_many}, {over}", equal.figures(), SPENT, _allowance(equal)))
    scores = [grid for table in tables for grid in compare_scores.grids(comparison, table)]
    return [*values(comparison), *scores, *_costs(comparison, over)]


def values(comparison: Comparison) -> list[Grid]:
    """Return the table of the values that each method has of its own, and where they come from; none without any."""
    own: Mapping[str, Mapping[str, Any]] = comparison.experiment.get("values", {})
    keys = list(dict.fromkeys(key for values in own.values() for key in values))
    if not keys:
        return []
    rows = [[method, *(_value(values.get(key)) for key in keys)] for method, values in own.items()]
    return [Grid("Values of each method", ["method", *keys], rows, words=len(keys) + 1, notes=_sources(comparison))]


def _costs(comparison: Comparison, over: str) -> list[Grid]:
    metric, *others = comparison.metrics
    unit, tiers = SHARE if is_share(metric) else SCORE, comparison.tiers
    beside = {name: (title(name), SHARE if is_share(name) else SCORE) for name in (*others, LOSS)}
    if any(run.personal for runs in comparison.runs.values() for run in runs):
        beside |= {f"personal_{when}": (f"personal {title(metric)}, {when}", unit) for when in ("before", "after")}
    device = {"bytes_per_device": KINDS["bytes"], "macs_per_device": KINDS["macs"]}
    device |= {f"memory/{tier}": (f"peak memory, {tier}", BYTES) for tier in tiers}
    whole = dict(KINDS) | {"training_seconds": ("training", SECONDS)}
    if REFERENCE in comparison.runs:
        whole["macs_of_width"] = (f"MACs, {REFERENCE} = 1", NUMBER)
        whole["training_seconds_of_width"] = (f"training, {REFERENCE} = 1", NUMBER)
    whole |= {"wall_seconds": ("time here", SECONDS), "server_seconds": ("the server's part", SECONDS)}
    if comparison.virtual:
        whole["virtual_seconds"] = ("virtual time", SECONDS)
    if comparison.target is not None:
        target = f"{100 * comparison.target:g}%" if is_share(metric) else f"{title(metric)} {comparison.target:g}"
        whole["rounds_to_target"] = (f"rounds to {target}", NUMBER)
        whole["seconds_to_target"] = (f"time to {target}", SECONDS)
    return [
        _grid(f"Other scores of the global model, {over}", comparison, beside),
        _grid(f"What a device spends in the whole run, {over}", comparison, device),
        _grid(f"The whole run, {over}", comparison, whole, _clock(comparison)),
    ]


def ranking(comparison: Comparison) -> str:
    """Return the methods from the best to the worst, in words."""
    metric, summary = comparison.metric, comparison.summary()
    found = [f"{method} {shown(metric, summary[method][metric].mean or 0.0)}" for method in comparison.ranking]
    return f"Global model by {title(metric)}, the best first: {', '.join(found) or 'none was evaluated'}."


def markdown(comparison: Comparison) -> str:
    """Return every table as Markdown, under a line that says of what."""
    experiment = comparison.experiment
    tiers = {name: tier for name, tier in experiment["tiers"].items() if tier["devices"]}
    devices = ", ".join(f"{tier['devices']} {name} ({tier['width']:g})" for name, tier in tiers.items())
    if comparison.virtual:
        widths = ", ".join(f"{tier['width']:g}" for tier in tiers.values())
        devices = f"{sum(tier['devices'] for tier in tiers.values())} of {comparison.population}; widths {widths}"
    seeds = ", ".join(map(str, comparison.seeds))
    rate = experiment.get("training", {}).get("learning_rate")
    said = (
        ""
        if rate is None
        else f" Devices' learning rate {rate:g}, from the experiment{EXCEPT if values(comparison) else ''}."
    )
    head = (
        f"`{experiment['name']}`: {experiment['rounds']['count']} rounds, {experiment['partition']['kind']} partition, "
        f"devices: {devices}; seeds {seeds}.{said}\n\n{ranking(comparison)}\n"
    )
    return "\n".join([head, *(grid.markdown() for grid in grids(comparison))])


def _grid(title: str, comparison: Comparison, columns: Columns, *notes: str) -> Grid:
    """Return a table of some figures."""
    seeds = len(comparison.seeds)
    rows = [
        [method, *(cell(row.get(name), unit, seeds) for name, (_, unit) in columns.items())]
        for method, row in comparison.summary().items()
    ]
    return Grid(title, ["method", *(head for head, _ in columns.values())], rows, notes=notes)


def _over(seeds: Sequence[int]) -> str:
    return f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"


def _allowance(equal: Equal) -> str:
    _, unit = KINDS[equal.by]
    spread = Spread.of(map(float, equal.allowances))
    return (
        f"Allowance: {unit.write(spread.mean or 0.0, spread.deviation)}, of all devices. Each run is read at its last "
        "evaluated round within it; a dash: a run has not used it up, and would need more rounds than it may have."
    )


def _clock(comparison: Comparison) -> str:
    """Return by which clock training was timed, and what that depends on."""
    clocks = {run.clock for runs in comparison.runs.values() for run in runs}
    by = {"processor": "seconds of the processor", "wall": "seconds by the clock on the wall", "": "not known"}
    said = ", or ".join(by[clock] for clock in sorted(clocks, reverse=True))
    engine, plan = comparison.experiment.get("engine", "loop"), comparison.experiment.get("plan", "reference")
    return (
        f"Training: what training took all devices, {said}, engine {engine}, plan {plan}. What else the machine does "
        "lengthens it, seconds on the wall most; compare only runs of one machine under the same load."
    )


def _sources(comparison: Comparison) -> list[str]:
    """Return a line a method on how its values were chosen; where a sweep before the comparison chose them, one."""
    if not comparison.tuned:
        return ["Chosen by a sweep before the comparison, never on the test set: see sweep.md."]
    lines = dict[str, list[str]]()
    for method, entry in comparison.tuned["methods"].items():
        how = (
            f"by {entry['metric']} on {entry['selected_on']}, never on the test set; the best of "
            f"{entry['trials']} trials of {entry['rounds']} rounds, seeds {', '.join(map(str, entry['seeds']))}; "
            f"`{entry['command']}`"
        )
        lines.setdefault(how, []).append(method)
    return [f"{', '.join(methods)}: {how}" for how, methods in lines.items()]


def _value(value: Any) -> str:
    return DASH if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
