"""A run's model as one for each of several devices, and what makes one answer of theirs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diastole.client.asking import manifest_of
from diastole.experiments.errors import ExportError
from diastole.experiments.export import card as cards
from diastole.experiments.export.card import Row
from diastole.experiments.export.compress import FITTED, blocks_of
from diastole.experiments.export.export import Exported, Wanted, choose, examples, row
from diastole.experiments.export.formats import SAFETENSORS, Ran, Runner, difference, format_of
from diastole.experiments.export.source import Source
from diastole.models.errors import ModelError
from diastole.models.export.channels import pruned
from diastole.models.export.counting import forward_macs
from diastole.models.export.plain import parameter_bytes
from diastole.models.export.split import fusion, groups, only
from diastole.proto.files import write_bytes

MANIFEST = "split.json"


def split(source: Source, wanted: Wanted, count: int) -> Exported:
    """Choose a model of a run, and write `count` parts of it, each with its card, and their manifest, into a folder.

    Raises `DiastoleError`.
    """
    if wanted.form == SAFETENSORS or wanted.int8 or wanted.exits is not None or wanted.compress:
        raise ExportError("--split makes its parts smaller by itself; it goes with another --format, and --keep alone")
    known, why = examples(source, wanted)
    if known is None:
        raise ExportError(f"--split fits its parts to examples, and there are none: {why}")
    found, looked = choose(source, known, wanted)
    config, kind, x = source.file.config, format_of(wanted.form), known.fit[:FITTED]
    if config.gives != (config.classes,) or config.classes < 4:
        raise ExportError(f"--split: a model of 4 classes or more is accepted, not one that gives {list(config.gives)}")
    folder = wanted.out or source.path.parent / "split"
    modules, runners, written, told = [], list[Runner](), list[Path](), list[dict[str, Any]]()
    rows, files = [row("torch", found.size, found.module, known, source)], list[tuple[Path, bytes, dict[str, Any]]]()
    try:
        parts = groups(config.classes, count)
    except ModelError as error:
        raise ExportError(f"--split {count}: {error}") from None
    for number, classes in enumerate(parts, 1):
        cut = only(found.module, classes, config.classes, x)
        try:
            made = pruned(cut, x, wanted.keep, blocks_of(found.module, config))[0].eval()
        except ModelError as error:
            raise ExportError(f"--split: {error}") from None
        mine = replace(config, classes=len(classes))
        content = kind.pack(made, mine)
        runner = kind.run(content)
        label = f"{found.spec.label}, classes {classes.start} to {classes.stop - 1}"
        form = row(label, len(content), runner, None, source, difference(made, runner, mine), known.choose.x)
        costs = {"parameters": sum(p.numel() for p in made.parameters()), "macs": forward_macs(made, config.blank(1))}
        note = (
            f"Part {number} of {count}: knows the classes {classes.start} to {classes.stop - 1}. {MANIFEST} fuses them."
        )
        card = cards.card_of(source, known, found.spec, wanted.form, [form], costs, [note])
        card |= {"model": label, "config": mine.to_json(), "output": [len(classes)], "classes": len(classes)}
        path = folder / f"part-{number}{kind.suffix}"
        files.append((path, kind.tell(content, json.dumps(card)), card))
        modules.append(made)
        runners.append(runner)
        rows.append(form)
        told.append({"file": path.name, "model": label, "classes": [*classes], "bytes": parameter_bytes(made)})
    with torch.no_grad():
        weight, bias = fusion(modules, x, found.module(x))

    def fused(inputs: Tensor) -> Tensor:
        return torch.cat([runner(inputs) for runner in runners], 1) @ weight.T + bias

    whole = Ran(fused)
    slowest = max(form.milliseconds for form in rows[1:])
    scores = known.score(whole, known.choose), known.score(whole, known.test)
    rows.append(Row("all parts, side by side", sum(form.bytes for form in rows[1:]), slowest, *scores))
    notes = [
        f"In {count} parts, each with {wanted.keep:.0%} of its channels; fused by least squares on {len(x)} inputs."
    ]
    costs = {"parameters": sum(p.numel() for p in found.module.parameters()), "macs": found.macs}
    card = cards.card_of(source, known, found.spec, wanted.form, rows, costs, notes)
    for path, content, part in files:
        write_bytes(path, content)
        written += [path, *cards.write(part, path)]
    # Last, because it is what names the others.
    manifest = folder / MANIFEST
    document = {"config": config.to_json(), "model": found.spec.label, "round": source.file.round, "parts": told}
    write_bytes(manifest, manifest_of({**document, "weight": weight.tolist(), "bias": bias.tolist(), "card": card}))
    return Exported(manifest, card, looked, (manifest, *written))
