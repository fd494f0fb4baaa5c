"""`diastole infer`: answers of a trained model, for a file of examples or for other programs."""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diastole.cli.options import Json, consoles, print_json
from diastole.client.errors import DataError

if TYPE_CHECKING:
    from diastole.client.inference import Predictor


def infer(
    model: Annotated[Path | None, typer.Option(help="A model.safetensors, or what diastole export wrote.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="An agent's state folder: the sub-model that the device trained last.")
    ] = None,
    personal: Annotated[bool, typer.Option(help="With --state: the model that is this device's own.")] = False,
    run: Annotated[str, typer.Option(help="With --personal: that of this run; by default of the latest one.")] = "",
    tier: Annotated[str | None, typer.Option(help="The model of a tier; by default the whole one.")] = None,
    size: Annotated[str | None, typer.Option(help="The model of this label.")] = None,
    data_path: Annotated[
        Path | None, typer.Option("--data", help="An .npz with x, and y if there are labels to be judged by.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write all outputs to this .npz.")] = None,
    serve: Annotated[Path | None, typer.Option(help="Answer other programs at this Unix socket.")] = None,
    hop: Annotated[
        int | None, typer.Option(min=1, help="With --serve: connections are streams; windows begin so far apart.")
    ] = None,
    approximate: Annotated[
        bool, typer.Option(help="With --hop: normalisations keep the statistics of earlier windows, which is faster.")
    ] = False,
    listen: Annotated[str, typer.Option(help="Answer other machines over gRPC at HOST:PORT; port 0 for any.")] = "",
    split: Annotated[
        Path | None, typer.Option(help="In the place of --model: a split.json, whose parts answer at each --at.")
    ] = None,
    at: Annotated[list[str] | None, typer.Option(help="HOST:PORT where a part answers; once for each.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="With --listen: the certificate to show, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="With --at: the authority that certifies the parts, PEM.")] = None,
    insecure: Annotated[bool, typer.Option(help="Plain text off loopback, on a network that you trust.")] = False,
    allow_factory: Annotated[
        list[str] | None, typer.Option(help="package.module:function of a custom model to be imported here.")
    ] = None,
    json: Json = False,
) -> None:
    """Answer with a trained model: for the examples of a file, or for other programs until it is told to stop.

    Example: `diastole infer --model report/model.safetensors --tier small --data shard.npz`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.experiments.export.files import predictor as predicting
    from diastole.models.networks.custom import own as custom

    for factory in allow_factory or []:
        custom.allow(factory)
    if sum(map(bool, (data_path, serve, listen))) != 1:
        raise typer.BadParameter(
            "give --data, for the examples of a file, or --serve or --listen, for other programs or machines"
        )
    if split is not None:
        if model or state or not data_path:
            raise typer.BadParameter("--split goes with --at and --data, and neither with --model nor --state")
        predictor = _parts(split, at or [], tls_ca, insecure=insecure)
    else:
        predictor = predicting(_file(model, state, personal, run), tier, size)
    if listen:
        _listen(predictor, listen, tls_cert, tls_key, insecure=insecure)
    elif serve is not None:
        _serve(predictor, serve, hop, approximate)
    elif data_path is not None:
        _answer(predictor, data_path, out, json)


def _file(model: Path | None, state: Path | None, personal: bool, run: str) -> Path:
    if (model is None) == (state is None):
        raise typer.BadParameter("give --model, a file, or --state, an agent's folder")
    if run and not (personal and state):
        raise typer.BadParameter("--run goes with --state and --personal")
    from diastole.client.inference import CURRENT, PERSONAL, personal_of

    own = personal_of(run) if run else PERSONAL
    return model if model is not None else Path(str(state)) / (own if personal else CURRENT)


def _parts(split: Path, at: list[str], ca: Path | None, *, insecure: bool) -> "Predictor":
    from diastole.client.asking import Fused
    from diastole.client.tls import credentials
    from diastole.proto.address import Address

    if not at:
        raise typer.BadParameter("--split needs --at HOST:PORT for each of its parts")
    places = [str(Address.parse(each)) for each in at]
    return Fused(split, places, [credentials(each, ca, None, None, insecure=insecure) for each in places])


def _listen(predictor: "Predictor", listen: str, cert: Path | None, key: Path | None, *, insecure: bool) -> None:
    from diastole.client.asking import listening
    from diastole.client.tls import shown
    from diastole.proto.address import Address

    where = Address.parse(listen, listening=True)
    if not (where.loopback or insecure or cert):
        raise typer.BadParameter(
            f"--listen {listen}: other machines are answered over TLS (--tls-cert and --tls-key), or --insecure"
        )
    if insecure and cert:
        raise typer.BadParameter("--insecure is plain text, in which no certificate is shown; give one or the other")
    credentials = shown(cert, key)
    stopped = _until_told()
    with listening(str(where), predictor, credentials) as port:
        typer.echo(f"{predictor.label} of round {predictor.round} answers at {where.at(port)}")
        while not stopped.wait(0.5):
            pass


def _until_told() -> threading.Event:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def _serve(predictor: "Predictor", path: Path, hop: int | None, approximate: bool) -> None:
    from diastole.client.answering import Answering, answering

    stopped = _until_told()
    with answering(Answering(path, predictor, hop, approximate=approximate)):
        typer.echo(f"{predictor.label} of round {predictor.round} answers at {path}")
        while not stopped.wait(0.5):
            pass


def _answer(predictor: "Predictor", path: Path, out: Path | None, json: bool) -> None:
    import numpy as np
    from rich.table import Table

    from diastole.client import data
    from diastole.client.inference import labels
    from diastole.models.losses import check_targets
    from diastole.models.metrics import shown, title
    from diastole.models.scoring import evaluate
    from diastole.models.training import Examples, TrainConfig

    x, y = data.load_inputs(path)
    inputs = predictor.inputs(x)
    outputs = predictor.outputs(inputs)
    named, scores = labels(outputs, predictor.model), dict[str, float]()
    if y is not None:
        criterion = TrainConfig(
            loss="cross-entropy" if named is not None or not y.is_floating_point() else "mse"
        ).criterion
        check_targets(str(path), criterion, y, predictor.model.gives, predictor.model.classes)
        scores |= evaluate(predictor.module, Examples(inputs, y), criterion, criterion.metrics(y)).metrics
    if out is not None:
        np.savez(out, outputs=outputs.numpy(), labels=np.array(named or [], np.int64))
    if json:
        print_json(
            {
                "model": predictor.label,
                "round": predictor.round,
                "examples": len(outputs),
                "labels": named,
                "scores": dict(scores),
            }
        )
        return
    console = consoles(json)
    told = ", ".join(f"{title(name)} {shown(name, value)}" for name, value in scores.items())
    console.print(
        f"{predictor.label} of round {predictor.round}: {len(outputs)} examples" + (f", {told}" if told else ""),
    )
    if named is not None:
        table = Table("class", "examples")
        for label, count in sorted({label: named.count(label) for label in named}.items()):
            table.add_row(str(label), str(count))
        console.print(table)
    elif out is None:
        raise DataError("this model gives no classes, of which there is a table; --out FILE.npz takes all outputs")
