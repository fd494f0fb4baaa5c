"""`diastole demo`: a whole federation from one command."""

import os
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.options import Json, check_folder, consoles, note_pictures, print_json


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Every random draw derives from it.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the comparison, counted up from the first.")] = 5,
    method: Annotated[str, typer.Option(help="How sub-models are made; see `diastole methods`.")] = "splitmix",
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    json: Json = False,
) -> None:
    """Run a coordinator and eight agent processes of three sizes on handwritten digits, over gRPC.

    The same federation is then simulated with other methods and baselines, over several seeds, and compared.

    Example: `diastole demo --seed 1 --out report`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.cli import compare_tables, comparing, tables
    from diastole.cli.console import Watch
    from diastole.experiments.report.trackers import remove_curves
    from diastole.simulations.compare import compare
    from diastole.simulations.compared import known, planned_runs
    from diastole.simulations.demo import RIVALS, demo_experiment, run_real
    from diastole.simulations.devices import make_federation

    console = consoles(json)
    federation = make_federation(demo_experiment(seed, method))
    names, numbers = known([method, *RIVALS]), range(seed, seed + seeds)
    check_folder("--out", out)
    remove_curves(out)
    tiers = {name: profile.tier for name, profile in federation.profiles.items()}
    note_pictures(console)
    console.print(f"Starting {len(tiers)} agent processes, each with examples only it has")
    with Watch(console, tiers) as watch:
        result = run_real(federation, out, (watch,))
    paths = result.save(out)
    if not json:
        tables.finish(console, result, paths, json=False)
    settings = demo_experiment(seed, names[0])
    runs = len(planned_runs(settings, names, numbers))
    console.print(f"\nSimulating {runs} federations: {', '.join(names)}; seeds {numbers[0]} to {numbers[-1]}")
    with comparing.View(console, runs, runs * settings.rounds.count) as view:
        jobs = min(2, os.cpu_count() or 1)
        found = compare(settings, names, numbers, out / "seeds", view, jobs=jobs, fresh=True)
    paths = comparing.write(found, out / "seeds", ["png"])
    if json:
        print_json(result.as_dict() | {"comparison": found.as_dict()})
    else:
        console.print(compare_tables.grids(found)[0].rich())
        console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True)
