"""`diastole admin runs`: the queue of runs, and each of them from its first round to its last."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.admin.verb import Call, RunId, Yes, group, pairs, table, verb, word
from diastole.v1 import admin_pb2 as pb

SUBMIT_SECONDS = 120.0
"""The coordinator reads the data set before it answers."""

app = group("The runs of a coordinator.")


@verb(app, "list", [pb.Run])
def list_(call: Call) -> None:
    """List the runs of a coordinator, in their order.

    Example: `diastole admin runs list`
    """
    runs = call.ask("ListRuns", pb.ListRunsRequest()).runs
    rows = [
        (run.run_id, state(run), run.method, f"{run.round}/{run.rounds}", run.standing, *map(str, counts(run)))
        for run in runs
    ]
    columns = ("run", "state", "method", "round", "standing", "devices", "refused")
    call.answer(runs, table(columns, rows, columns[-2:]) if runs else "no run")


@verb(app, gives=pb.Run)
def show(call: Call, run_id: RunId = "") -> None:
    """Show how far a run is.

    Example: `diastole admin runs show`
    """
    run = one(call, run_id)
    scores = ", ".join(f"{name} {value:.4g}" for name, value in run.scores.items())
    online, quarantined = counts(run)
    call.answer(
        run,
        pairs(
            [
                ("run", run.run_id),
                ("state", state(run)),
                ("method", run.method),
                ("round", f"{run.round} of {run.rounds}"),
                ("standing", run.standing),
                ("scores", scores),
                ("devices online", str(online)),
                ("updates quarantined", str(quarantined)),
                ("seconds", f"{run.elapsed_seconds:.0f}"),
            ]
        ),
    )


@verb(app, gives=pb.Run)
def submit(
    call: Call,
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file; its data are the coordinator's.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    held: Annotated[bool, typer.Option("--held", help="It does not begin before `runs start`.")] = False,
) -> None:
    """Put an experiment into a coordinator's queue, behind all others.

    Example: `diastole admin runs submit simulations/examples/digits.toml --set rounds.count=20`
    """
    # Imports torch, which the other commands do without.
    from diastole.experiments import toml

    document = json.dumps(toml.read(experiment, change or []))
    run = call.ask("Submit", pb.SubmitRequest(experiment_json=document, held=held), SUBMIT_SECONDS).run
    call.answer(run, f"run {run.run_id} is {state(run)}: {run.method}, {run.rounds} rounds")


@verb(app, gives=pb.Run)
def start(call: Call, run_id: RunId = "") -> None:
    """Let a run begin that was submitted to be held.

    Example: `diastole admin runs start 3f1c88a0d2b4`
    """
    run = call.ask("Start", pb.StartRequest(run_id=run_id)).run
    call.answer(run, f"run {run.run_id} begins when its turn has come")


@verb(app, gives=pb.Run)
def pause(call: Call, run_id: RunId = "") -> None:
    """Let a run close its open round, and begin no other before it is resumed, also if the coordinator is restarted.

    Example: `diastole admin runs pause`
    """
    run = call.ask("Pause", pb.PauseRequest(run_id=run_id)).run
    call.answer(run, f"run {run.run_id} {'rests after the open round' if run.pausing else 'is ' + state(run)}")


@verb(app, gives=pb.Run)
def resume(call: Call, run_id: RunId = "") -> None:
    """Let a run go on that is paused.

    Example: `diastole admin runs resume`
    """
    run = call.ask("Resume", pb.ResumeRequest(run_id=run_id)).run
    call.answer(run, f"run {run.run_id} goes on")


@verb(app, gives=pb.Run)
def stop(
    call: Call,
    run_id: RunId = "",
    now: Annotated[bool, typer.Option("--now", help="Abandon the current round instead of closing it.")] = False,
    yes: Yes = False,
) -> None:
    """End a run after its current round; its model and report are written.

    Example: `diastole admin runs stop --now --yes`
    """
    call.sure(yes, f"End {f'run {run_id}' if run_id else 'the run'} for good?")
    run = call.ask("Stop", pb.StopRequest(run_id=run_id, now=now)).run
    call.answer(run, f"run {run.run_id} ends {'now' if now else 'after this round'}")


@verb(app, shape={"number": int, "seconds": float, "kind": str, "event": dict})
def watch(call: Call, run_id: RunId = "") -> None:
    """Follow a run from its first event to its end; with --json one document a line.

    Example: `diastole admin runs watch --json`
    """
    with call.open() as stub:
        for event in stub.Watch(pb.WatchRequest(run_id=run_id)):
            fields = json.loads(event.json)
            if call.json:
                head = {"number": event.number, "seconds": event.seconds, "kind": event.kind}
                line = json.dumps(head | {"event": fields})
            else:
                line = f"{event.seconds:8.1f} s  {event.kind}  " + ", ".join(f"{k}={v}" for k, v in fields.items())
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def one(call: Call, run_id: str) -> pb.Run:
    """Return a run by its name, without one the run that is under way. Raises `RefusedError`."""
    found: pb.Run = call.ask("ShowRun", pb.ShowRunRequest(run_id=run_id)).run
    return found


def state(run: pb.Run) -> str:
    """Return how far a run is, in a word."""
    return "pausing" if run.pausing else word(pb.Run.State.Name(run.state))


def counts(run: pb.Run) -> tuple[int, int]:
    """Return how many devices are online, and how many updates were quarantined."""
    return run.devices_online, run.quarantined
