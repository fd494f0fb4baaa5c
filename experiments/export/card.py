"""A model card: what an exported file holds, where it comes from, how good it is and what it takes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diastole.client.model_file import ModelFile
from diastole.experiments.export.source import Known, Source
from diastole.models.metrics import shown, title
from diastole.models.spec import SubModelSpec
from diastole.proto.files import write_bytes
from diastole.proto.jsontext import from_json

CARD = "card"
"""The key of a card in the metadata of a safetensors file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One form of an exported model, beside others.

    Attributes:
        form: what it is, such as "onnx" or "onnx int8".
        bytes: of its file but for the card, or of its parameters if it is in memory alone.
        milliseconds: median of answering one example on the machine that exported it, with one thread.
        validation: the deciding metric on the examples that the model was chosen by; None if it is not known.
        test: the same on the test set.
        difference: how far outputs are from torch's at most; None where they are meant to differ.

    """

    form: str
    bytes: int
    milliseconds: float
    validation: float | None = None
    test: float | None = None
    difference: float | None = None


def card_of(
    source: Source,
    known: Known | None,
    spec: SubModelSpec,
    form: str,
    rows: Sequence[Row],
    costs: Mapping[str, int],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return a card as JSON; `costs` are of the exported model, and `notes` say how it was made."""
    file, report = source.file, source.report
    tiers = [
        {key: row[key] for key in ("tier", "devices", "spec", "parameters", "scores") if key in row}
        for row in report.get("tiers", ())
    ]
    return {
        "diastole": version("diastole"),
        "format": form,
        "model": spec.label,
        "spec": from_json(spec.to_json()),
        **about(file),
        "data": known.name if known else _data(source),
        "rounds": file.round,
        "metric": known.metrics[0] if known and known.metrics else None,
        "forms": [asdict(row) for row in rows],
        "costs": dict(costs),
        "tiers": tiers,
        "run": {"id": report.get("run", ""), "sha256": source.digest},
        "notes": list(notes),
    }


def about(file: ModelFile) -> dict[str, Any]:
    """Return what a model takes and gives."""
    config = file.config
    return {
        "network": config.name,
        "config": config.to_json(),
        "method": file.method,
        "input": {"shape": list(config.input_shape), "type": "int64" if config.tokens else "float32"},
        "output": list(config.gives),
        "classes": config.classes,
        "task": file.about.get("task", ""),
        "normalisation": "none in the model: inputs are values as the training data has them",
    }


def write(card: Mapping[str, Any], path: Path) -> list[Path]:
    """Write a card beside the file that it is of, as JSON and as Markdown; return the paths."""
    paths = [path.with_name(path.name + ".json"), path.with_name(path.name + ".md")]
    write_bytes(paths[0], (json.dumps(card, indent=2) + "\n").encode())
    write_bytes(paths[1], markdown(card, path.name).encode())
    return paths


def markdown(card: Mapping[str, Any], name: str) -> str:
    """Return a card for people."""
    metric, given = card["metric"], card["input"]

    def score(value: float | None) -> str:
        return "-" if value is None or metric is None else shown(metric, value)

    heading = title(metric) if metric else "score"
    lines = [
        f"# {name}",
        "",
        f"`{card['model']}`, a {card['network']} of method {card['method']}, exported by diastole {card['diastole']}.",
        "",
        f"* Takes `[n, {', '.join(map(str, given['shape']))}]` {given['type']}.",
        f"* Normalisation: {card['normalisation']}.",
        f"* Gives `[n, {', '.join(map(str, card['output']))}]`" + (f", for {card['task']}." if card["task"] else "."),
        f"* Data: {card['data']}; rounds: {card['rounds']}.",
        f"* Costs: {card['costs']['parameters']} parameters, {card['costs']['macs']} multiply-accumulates an example.",
        f"* The run's models: SHA-256 `{card['run']['sha256']}`.",
        *(f"* {note}" for note in card["notes"]),
        "",
        f"| form | bytes | ms an example, one thread | {heading}, validation | {heading}, test |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['form']} | {row['bytes']} | {row['milliseconds']:.3g} | {score(row['validation'])} "
            f"| {score(row['test'])} |"
            for row in card["forms"]
        ),
        "",
    ]
    if card["tiers"]:
        lines += ["Tiers of the run, on its test set:", "", f"| tier | devices | sub-model | {heading} |"]
        lines += ["| --- | ---: | --- | ---: |"]
        lines += [
            f"| {row['tier']} | {row['devices']} | {row['spec']} | {score(row['scores'].get(metric))} |"
            for row in card["tiers"]
        ]
    return "\n".join(lines).rstrip() + "\n"


def _data(source: Source) -> str:
    return source.file.about.get("data", "not known")
