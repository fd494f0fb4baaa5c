"""`diastole demo`: a whole federation from one command."""

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.options import Json, check_folder, consoles, note_pictures


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Every random draw derives from it.")] = 0,
    method: Annotated[str, typer.Option(help="How sub-models are made; see `diastole methods`.")] = "diastole",
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    json: Json = False,
) -> None:
    """Run a coordinator and eight agent processes of three sizes on handwritten digits, over gRPC.

    Example: `diastole demo --seed 1 --out report`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.cli import tables
    from diastole.cli.console import Watch
    from diastole.experiments.report.trackers import remove_curves
    from diastole.models.methods.registry import METHODS
    from diastole.simulations.demo import demo_experiment, run_baseline, run_real
    from diastole.simulations.devices import make_federation

    console = consoles(json)
    federation = make_federation(demo_experiment(seed, method))
    check_folder("--out", out)
    remove_curves(out)
    tiers = {name: profile.tier for name, profile in federation.profiles.items()}
    note_pictures(console)
    console.print(f"Starting {len(tiers)} agent processes, each with examples only it has")
    with Watch(console, tiers) as watch:
        result = run_real(federation, out, (watch,))
    baselines = {}
    for baseline, row in METHODS.items():
        if not row.baseline or row.each_width:
            continue
        with Watch(console, tiers, f"baseline: {row.baseline}") as watch:
            baselines[baseline] = run_baseline(federation, baseline, (watch,) if console.is_terminal else ())
    result = result.with_baselines(baselines)
    tables.finish(console, result, result.save(out), json=json)
