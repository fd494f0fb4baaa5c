"""`diastole tune`: the values of some keys that suit each method, found on parts of the training set."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.options import DataPath, Figures, Json, Track, beside, check_folder, consoles, data_overrides


def tune(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file; its method does not matter.")],
    method: Annotated[str, typer.Option(help="Methods and baselines, separated by commas; each is tuned by itself.")],
    keys: Annotated[
        str, typer.Option(help="Keys to try values of, separated by commas, over the ranges that are known for them.")
    ] = "",
    range_: Annotated[
        list[str] | None, typer.Option("--range", help="Try values of a key from a range: table.key=low..high.")
    ] = None,
    grid: Annotated[list[str] | None, typer.Option(help="Try these values of a key: table.key=value,value.")] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="How many points are tried for each method; by default 20, or all of --grid alone."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each trial; their mean counts.")] = None,
    metric: Annotated[str | None, typer.Option(help='A figure of a run, such as "mean_tier_accuracy".')] = None,
    validation: Annotated[
        str | None, typer.Option(help='The share of the training examples to choose on, or "proxy".')
    ] = None,
    prune: Annotated[
        int | None, typer.Option(min=0, help="End bad trials from this round on, by default after a quarter; 0: never.")
    ] = None,
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the trials and what was found.")] = Path("tuned"),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time, if [sweep] batch draws several.")] = 1,
    track: Track = None,
    figures: Figures = "png",
    fresh: Annotated[bool, typer.Option(help="Delete what the folder has of every method.")] = False,
    json: Json = False,
) -> None:
    """Find each method's own values of some keys, on examples held out of the training set.

    Optuna draws the trials, and the test set takes no part. Given again after it was stopped or killed, it goes on;
    more --trials add to those there are, and other methods join them in tuned.json. `diastole compare FILE --tuned
    FOLDER` then uses what was found.

    Example: `diastole tune simulations/examples/digits.toml --method width,diastole --keys training.learning_rate`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.cli import sweep_tables
    from diastole.cli.comparing import View
    from diastole.cli.options import print_json
    from diastole.cli.tuning import planned, sweeping
    from diastole.experiments.report.figures import kinds_of
    from diastole.experiments.sweep.tuned import FILE
    from diastole.simulations.compared import Files, known
    from diastole.simulations.sweep import planned_count, sweep, writer
    from diastole.simulations.tuned import earlier, joined

    writer()
    beside(experiment)
    names = known([name.strip() for name in method.split(",") if name.strip()])
    asked = {"trials": trials, "seeds": seeds, "metric": metric, "validation": validation, "prune": prune}
    settings = sweeping(
        experiment, [*data_overrides(data), *(change or [])], names, planned(keys, range_ or [], grid or []), asked
    )
    console, kinds = consoles(json), kinds_of(figures)
    check_folder("--out", out)
    runs = planned_count(settings, names)
    if fresh:
        (out / FILE).unlink(missing_ok=True)
    before = earlier(settings, names, Files(out))
    try:
        with View(console, runs, runs * settings.rounds.count) as view:
            found = sweep(settings, names, out, view, jobs=jobs, track=track or (), fresh=fresh)
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        raise typer.Exit(130) from None
    paths = sweep_tables.write(found, settings, out, kinds)
    tuned = joined(settings, before, found, shlex.join(["diastole", *sys.argv[1:]]), Files(out))
    paths.insert(0, tuned.write(out))
    if json:
        print_json(tuned.model_dump(mode="json"))
        return
    console.print(sweep_tables.best(found).rich())
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True)
    console.print(f"diastole compare {experiment} --tuned {out} compares at these values.", soft_wrap=True)
