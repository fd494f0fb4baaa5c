"""From a run to a file that runs elsewhere, with a card that says what it is."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from diastole.client.model_file import ModelFile
from diastole.experiments.errors import ExportError
from diastole.experiments.export import card as cards
from diastole.experiments.export.budget import Budget
from diastole.experiments.export.card import Row
from diastole.experiments.export.formats import SAFETENSORS, Ran, Runner, difference, format_of
from diastole.experiments.export.search import Candidate, Search, timer_of
from diastole.experiments.export.source import Known, Source
from diastole.models.export.counting import latency
from diastole.models.seeds import generator
from diastole.proto.errors import DiastoleError
from diastole.proto.files import write_bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes:
        form: a name of `formats.NAMES`.
        tier: the model of a tier.
        size: the model of this label.
        budget: what it may take; the best model within it is chosen. Empty with `tier` or `size`.
        out: the file; by default named after the model, beside the run's.
        data: an archive of examples to choose and calibrate by, in the place of the run's proxy set.

    """

    form: str = SAFETENSORS
    tier: str | None = None
    size: str | None = None
    budget: str = ""
    out: Path | None = None
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of it.

    Attributes:
        path: of the model.
        card: of the model, as JSON; it lies beside, and as Markdown.
        looked: how many sub-models the choice was among; 0 if there was none.
        written: all files.

    """

    path: Path
    card: dict[str, Any]
    looked: int
    written: tuple[Path, ...]


def export(source: Source, wanted: Wanted) -> Exported:
    """Choose a model of a run and write it with its card. Raises `DiastoleError`."""
    if sum(map(bool, (wanted.tier, wanted.size, wanted.budget))) > 1:
        raise ExportError("a model is chosen by --tier, by --size or by --budget; give one of them")
    suffix = ".safetensors" if wanted.form == SAFETENSORS else format_of(wanted.form).suffix
    known, why = _known(source, wanted)
    notes = [f"Not judged on examples: {why}."] if why else []
    found, looked = _chosen(source, known, wanted)
    if looked:
        by = "the proxy set's validation part" if wanted.data is None else str(wanted.data)
        how = f"best by {known.metrics[0]} on {by}" if known and known.metrics else "largest"
        notes.append(f"Chosen for the budget {wanted.budget!r} as the {how}, of {looked} sub-models.")
    path = wanted.out or source.path.parent / (found.spec.label.replace(" ", "-") + suffix)
    config = source.file.config
    rows = [row("torch", found.size, found.module, known, source)]
    costs = {"parameters": sum(p.numel() for p in found.module.parameters()), "macs": found.macs}

    def carded(more: list[Row]) -> dict[str, Any]:
        return cards.card_of(source, known, found.spec, wanted.form, [*rows, *more], costs, notes)

    if wanted.form == SAFETENSORS:
        card = carded([])
        content = alone(source.file, found, card)
    else:
        kind = format_of(wanted.form)
        content = kind.pack(found.module, config, json.dumps(carded([])))
        runner = kind.run(content)
        apart = difference(found.module, runner, config)
        card = carded([row(wanted.form, len(content), runner, known, source, apart)])
    write_bytes(path, content)
    return Exported(path, card, looked, (path, *cards.write(card, path)))


def row(
    form: str,
    size: int,
    model: nn.Module | Runner,
    known: Known | None,
    source: Source,
    apart: float | None = None,
) -> Row:
    """Return how a model does in one form: its time, and its scores as far as there are examples."""
    call: Callable[..., Any] = model
    seconds = latency(call, source.file.config.drawn(1, generator("export")))
    module = model if isinstance(model, nn.Module) else Ran(model)
    found = Row(form, size, seconds * 1e3, difference=apart)
    if known is None:
        return found
    return replace(found, validation=known.score(module, known.choose), test=known.score(module, known.test))


def alone(file: ModelFile, found: Candidate, card: dict[str, Any]) -> bytes:
    """Return a file of one sub-model, as `diastole infer` and `diastole.load` take it."""
    label = found.spec.label
    one = replace(file, state={}, specs={label: found.spec}, parts={label: found.state}, tiers={}, whole=label, kept={})
    return replace(one, about={**file.about, cards.CARD: json.dumps(card)}).to_bytes()


def _known(source: Source, wanted: Wanted) -> tuple[Known | None, str]:
    """Return the examples to choose and judge by, or why there are none, which is well if nothing is chosen."""
    try:
        return source.known(wanted.data), ""
    except DiastoleError as error:
        if wanted.data is not None:
            raise
        return None, str(error)


def _chosen(source: Source, known: Known | None, wanted: Wanted) -> tuple[Candidate, int]:
    """Return the model that is asked for, and among how many it was chosen."""
    budget = Budget.parse(wanted.budget) if wanted.budget else Budget()
    search = Search(source, known, budget, timer_of(source))
    if budget:
        best = search.best()
        return best, search.looked
    file = source.file
    module = file.module(wanted.tier, wanted.size)
    label = wanted.size or (file.tiers[wanted.tier] if wanted.tier else file.whole)
    return search.candidate(file.specs[label], module), 0
