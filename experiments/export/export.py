"""From a run to a file that runs elsewhere, with a card that says what it is."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diastole.client.model_file import ModelFile
from diastole.experiments.errors import ExportError
from diastole.experiments.export import card as cards
from diastole.experiments.export.budget import Budget
from diastole.experiments.export.card import Row
from diastole.experiments.export.compress import WAYS, compressed
from diastole.experiments.export.exits import calibrate, conditional
from diastole.experiments.export.formats import SAFETENSORS, Ran, Runner, difference, format_of, takes_one
from diastole.experiments.export.int8 import MOST, quantised
from diastole.experiments.export.search import Candidate, Search, timer_of
from diastole.experiments.export.source import Known, Source
from diastole.models.export.counting import latency
from diastole.models.seeds import generator
from diastole.proto.errors import DiastoleError
from diastole.proto.files import write_bytes

TIMED = 32
"""Examples that are answered, one at a time, to take the time."""


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
        int8: whether weights and activations are quantised; "onnx" only.
        exits: points of accuracy that leaving by early exits may cost; None to run to the end. "onnx" only.
        compress: "depth" or "channels", to make the model smaller without training it further; "" for neither.
        keep: share of its time, or of its channels, that is then left.

    """

    form: str = SAFETENSORS
    tier: str | None = None
    size: str | None = None
    budget: str = ""
    out: Path | None = None
    data: Path | None = None
    int8: bool = False
    exits: float | None = None
    compress: str = ""
    keep: float = 0.7


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
    check(wanted)
    suffix = ".safetensors" if wanted.form == SAFETENSORS else format_of(wanted.form).suffix
    known, why = examples(source, wanted)
    notes = [f"Not judged on examples: {why}."] if why else []
    found, looked = choose(source, known, wanted)
    if looked:
        by = "the proxy set's validation part" if wanted.data is None else str(wanted.data)
        how = f"best by {known.metrics[0]} on {by}" if known and known.metrics else "largest"
        notes.append(f"Chosen for the budget {wanted.budget!r} as the {how}, of {looked} sub-models.")
    rows = [row("torch", found.size, found.module, known, source)]
    if wanted.compress:
        found, note = compressed(found, wanted.compress, wanted.keep, known, source.file.config)
        rows.append(row(f"torch, {wanted.compress} {wanted.keep:.0%}", found.size, found.module, known, source))
        notes.append(note)
    content, more = _packed(source, known, wanted, found, notes)
    costs = {"parameters": sum(p.numel() for p in found.module.parameters()), "macs": found.macs}
    card = cards.card_of(source, known, found.spec, wanted.form, [*rows, *more], costs, notes)
    path = wanted.out or source.path.parent / (found.spec.label.replace(" ", "-") + suffix)
    write_bytes(path, content(json.dumps(card)))
    return Exported(path, card, looked, (path, *cards.write(card, path)))


def check(wanted: Wanted) -> None:
    """Raise `ExportError` for wishes that do not go together."""
    if sum(map(bool, (wanted.tier, wanted.size, wanted.budget))) > 1:
        raise ExportError("a model is chosen by --tier, by --size or by --budget; give one of them")
    for option, given in (("--int8", wanted.int8), ("--exits", wanted.exits is not None)):
        if given and wanted.form != "onnx":
            raise ExportError(f"{option} goes with --format onnx, not {wanted.form}")
    if wanted.compress and wanted.compress not in WAYS:
        raise ExportError(f"--compress {wanted.compress}: accepted: {', '.join(WAYS)}")
    if wanted.compress and not 0 < wanted.keep < 1:
        raise ExportError(f"--keep {wanted.keep:g}: a share between 0 and 1 is accepted")
    if wanted.compress and (wanted.form == SAFETENSORS or wanted.exits is not None):
        raise ExportError(
            "--compress makes a module that no method knows; it goes with another --format, without --exits"
        )
    if wanted.int8 and wanted.exits is not None:
        raise ExportError("--int8 and --exits do not go together; give one of them")


def _packed(
    source: Source, known: Known | None, wanted: Wanted, found: Candidate, notes: list[str]
) -> tuple[Callable[[str], bytes], list[Row]]:
    """Return what gives a file's content for a card as JSON, and how the model does in its forms; add notes."""
    if wanted.form == SAFETENSORS:
        return lambda card: alone(source.file, found, card), []
    kind, config = format_of(wanted.form), source.file.config
    content = kind.pack(found.module, config)
    runner = kind.run(content)
    forms = [row(wanted.form, len(content), runner, known, source, difference(found.module, runner, config))]
    if not wanted.int8 and wanted.exits is None:
        return lambda card: kind.tell(content, card), forms
    if known is None:
        raise ExportError(
            "int8 and early exits are calibrated on examples, and there are none; --data FILE.npz names some"
        )
    if wanted.int8:
        small = quantised(content, known.fit, takes_one(content))
        forms.append(row("onnx int8", len(small), kind.run(small), known, source))
        used = min(len(known.fit), MOST)
        notes.append(f"Weights are int8 by channel; activations were calibrated on {used} examples.")
        return lambda card: kind.tell(small, card), forms
    calibrated = calibrate(found.trained, known, config, wanted.exits or 0.0)
    leaving = conditional(calibrated.module, config)
    forms.append(row("onnx with exits", len(leaving), kind.run(leaving), known, source))
    notes.append(calibrated.note)
    return lambda card: kind.tell(leaving, card), forms


def row(
    form: str,
    size: int,
    model: nn.Module | Runner,
    known: Known | None,
    source: Source,
    apart: float | None = None,
    inputs: Tensor | None = None,
) -> Row:
    """Return how a model does in one form: its time, and its scores as far as there are examples.

    The time is the mean over some examples, because a model with exits takes longer for some than for others.
    """
    call: Callable[..., Any] = model
    inputs = known.choose.x if known else inputs
    inputs = source.file.config.drawn(1, generator("export")) if inputs is None else inputs[:TIMED]
    seconds = latency(lambda x: [call(one) for one in torch.split(x, 1)], inputs) / len(inputs)
    module = model if isinstance(model, nn.Module) else Ran(model)
    found = Row(form, size, seconds * 1e3, difference=apart)
    if known is None:
        return found
    return replace(found, validation=known.score(module, known.choose), test=known.score(module, known.test))


def alone(file: ModelFile, found: Candidate, card: str) -> bytes:
    """Return a file of one sub-model, as `diastole infer` and `diastole.load` take it."""
    label = found.spec.label
    one = replace(file, state={}, specs={label: found.spec}, parts={label: found.state}, tiers={}, whole=label, kept={})
    return replace(one, about={**file.about, cards.CARD: card}).to_bytes()


def examples(source: Source, wanted: Wanted) -> tuple[Known | None, str]:
    """Return the examples to choose and judge by, or why there are none, which is well if nothing is chosen."""
    try:
        return source.known(wanted.data), ""
    except DiastoleError as error:
        if wanted.data is not None:
            raise
        return None, str(error)


def choose(source: Source, known: Known | None, wanted: Wanted) -> tuple[Candidate, int]:
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
