"""`diastole export`: a trained model as a file that runs elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diastole.cli.grid import DASH, Grid
from diastole.cli.options import Json, consoles, print_json
from diastole.cli.sizes import megabytes

if TYPE_CHECKING:
    from diastole.experiments.export.export import Exported


def export(
    run: Annotated[Path, typer.Argument(help="What a run has left: its folder, or a model.safetensors.")],
    form: Annotated[
        str, typer.Option("--format", help="safetensors, onnx, executorch or torchscript.")
    ] = "safetensors",
    tier: Annotated[str | None, typer.Option(help="The model of a tier; by default the whole one.")] = None,
    size: Annotated[str | None, typer.Option(help="The model of this label.")] = None,
    budget: Annotated[str, typer.Option(help='The best model within a budget, such as "2 MB, 50 MMAC, 20 ms".')] = "",
    out: Annotated[Path | None, typer.Option(help="The file; by default beside the run's models.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="An .npz with x and y to choose and calibrate by; by default the proxy set.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="With onnx: int8 weights and activations, calibrated on the proxy set.")
    ] = False,
    exits: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="With onnx: leave by early exits that may cost so many points of accuracy."),
    ] = None,
    compress: Annotated[
        str, typer.Option(help="Make it smaller without training: depth (fewer layers) or channels.")
    ] = "",
    keep: Annotated[
        float, typer.Option(help="With --compress: share of the time, or of the channels, that is left.")
    ] = 0.7,
    split: Annotated[
        int,
        typer.Option(help="One model for each of so many devices, which know some classes each; --out is a folder."),
    ] = 0,
    allow_factory: Annotated[
        list[str] | None, typer.Option(help="package.module:function of a custom model to be imported here.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a trained model to a file that runs elsewhere, and a card that says what it is.

    Example: `diastole export report --budget "50 kB, 1 MMAC" --format onnx --out small.onnx`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.experiments.export.export import Wanted
    from diastole.experiments.export.export import export as exporting
    from diastole.experiments.export.source import Source
    from diastole.experiments.export.split import split as splitting
    from diastole.models.allowed import allow

    for factory in allow_factory or []:
        allow(factory)
    source = Source.open(run)
    wanted = Wanted(form, tier, size, budget, out, data, int8, exits, compress, keep)
    done = splitting(source, wanted, split) if split else exporting(source, wanted)
    if json:
        print_json({"path": str(done.path), "looked": done.looked, "card": done.card})
        return
    console = consoles(json)
    console.print(f"{done.card['model']} as {form}" + (f", best of {done.looked} that fit" if done.looked else ""))
    console.print(_forms(done).rich())
    for note in done.card["notes"]:
        console.print(note, soft_wrap=True)
    console.print(f"Written: {', '.join(map(str, done.written))}", soft_wrap=True)


def _forms(done: "Exported") -> Grid:
    from diastole.experiments.report.metric import heading
    from diastole.models.metrics import shown

    metric = done.card["metric"]

    def score(value: Any) -> str:
        return DASH if value is None or metric is None else shown(metric, value)

    name = heading(metric) if metric else "Score"
    return Grid(
        "One example at a time, with one thread",
        ["form", "size", "milliseconds", f"{name}, validation", f"{name}, test", "differs from torch by"],
        [
            [
                each["form"],
                megabytes(each["bytes"]),
                f"{each['milliseconds']:.3g}",
                score(each["validation"]),
                score(each["test"]),
                DASH if each["difference"] is None else f"{each['difference']:.1g}",
            ]
            for each in done.card["forms"]
        ],
        words=1,
    )
