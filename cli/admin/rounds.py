"""`diastole admin rounds`: what each round came to, and what came of its devices."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated

import typer

from diastole.cli.admin.verb import SECONDS, Call, OfRun, RunId, group, pairs, table, verb
from diastole.cli.grid import DASH
from diastole.cli.sizes import megabytes, thousands
from diastole.v1 import admin_pb2 as pb

app = group("The rounds of a run.")


@verb(app, "list", [pb.Round])
def list_(call: Call, run_id: RunId = "") -> None:
    """List the closed rounds of a run, those that were rolled back too.

    Example: `diastole admin rounds list`
    """
    rounds, more = list[pb.Round](), True
    with call.open() as stub:
        while more:
            page = stub.ListRounds(pb.ListRoundsRequest(run_id=run_id, skip=len(rounds)), timeout=SECONDS)
            rounds, more = [*rounds, *page.rounds], page.more and len(page.rounds) > 0
    rows = [
        (
            str(each.number),
            when(each.closed_at, brief=True),
            str(each.updates),
            scored(each.scores),
            megabytes(each.bytes_down),
            megabytes(each.bytes_up),
            f"{each.seconds:.1f}",
            "rolled back" if each.rolled_back else "abandoned" * bool(each.abandoned),
        )
        for each in rounds
    ]
    columns = ("round", "closed", "updates", "scores", "down", "up", "seconds", "what of it")
    numbers = ("round", "updates", "down", "up", "seconds")
    call.answer(rounds, table(columns, rows, numbers) if rounds else "no round is closed")


@verb(app, gives=pb.ShowRoundReply)
def show(
    call: Call,
    number: Annotated[
        int, typer.Argument(help="The round; by default the open one, or else the last.", show_default=False)
    ] = 0,
    run_id: OfRun = "",
) -> None:
    """Show what a round came to, which sub-model each of its devices held, and what came of it.

    Example: `diastole admin rounds show 7`
    """
    reply = call.ask("ShowRound", pb.ShowRoundRequest(run_id=run_id, number=number))
    about = reply.round
    facts = [
        ("round", f"{about.number}{', open' * about.open}{', rolled back' * about.rolled_back}"),
        ("closed", when(about.closed_at)),
        ("updates", str(about.updates) if not about.open else ""),
        ("abandoned", about.abandoned),
        ("scores", scored(about.scores)),
        *((f"  {each.size}", scored(each.scores)) for each in about.sizes),
    ]
    if not about.open:
        facts += [
            ("bytes down, up", f"{megabytes(about.bytes_down)}, {megabytes(about.bytes_up)}"),
            ("seconds", f"{about.seconds:.1f}, of which the server's own {about.server_seconds:.1f}"),
            ("MACs", thousands(about.macs)),
            ("look at", "\n".join(about.warnings)),
        ]
    numbers = ("examples", "loss", "seconds", "up")
    rows = table(("device", "sub-model", "outcome", *numbers, "reason"), list(map(_row, reply.devices)), numbers)
    lost = "what came of each device is not kept any more"
    call.answer(reply, pairs(facts), "", rows if reply.devices else lost)


def _row(each: pb.Assignment) -> Sequence[str]:
    brought = each.examples > 0
    return (
        each.device,
        ", ".join([each.size, *each.levers]),
        pb.Assignment.Outcome.Name(each.outcome).removeprefix("OUTCOME_").lower(),
        str(each.examples) if brought else DASH,
        f"{each.loss:.4g}" if each.HasField("loss") else DASH,
        f"{each.seconds:.2f}" if brought else DASH,
        megabytes(each.bytes_up) if each.bytes_up else DASH,
        each.reason,
    )


def scored(scores: Mapping[str, float]) -> str:
    """Return scores by name, the loss last."""
    return ", ".join(f"{name} {scores[name]:.4g}" for name in sorted(scores, key=lambda name: (name == "loss", name)))


def when(at: float, *, brief: bool = False) -> str:
    """Return a time, in seconds of the Unix epoch, as people read it here; nothing for none."""
    form = "%m-%d %H:%M" if brief else "%Y-%m-%d %H:%M:%S"
    return datetime.fromtimestamp(at).astimezone().strftime(form) if at else ""
