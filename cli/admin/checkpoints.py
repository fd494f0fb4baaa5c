"""`diastole admin checkpoints`: the models behind closed rounds, and going back to one of them."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.admin.rounds import scored, when
from diastole.cli.admin.verb import Call, RunId, Yes, group, table, verb
from diastole.cli.options import consoles, print_json
from diastole.cli.sizes import megabytes
from diastole.client.errors import FolderError, RefusedError
from diastole.v1 import admin_pb2 as pb

PULL_SECONDS, ROLLBACK_SECONDS = 3600.0, 600.0
"""The server's own work may have to end first."""

app = group("The models behind closed rounds.")


@verb(app, "list", [pb.Checkpoint])
def list_(call: Call, run_id: RunId = "") -> None:
    """List the closed rounds of a run of which the coordinator keeps a checkpoint: the last few, as it was started.

    Example: `diastole admin checkpoints list`
    """
    found = call.ask("ListCheckpoints", pb.ListCheckpointsRequest(run_id=run_id)).checkpoints
    rows = [(str(each.round), when(each.written_at), megabytes(each.bytes), scored(each.scores)) for each in found]
    shown = table(("round", "written", "bytes", "scores"), rows, ("round", "bytes"))
    call.answer(found, shown if found else "no checkpoint is kept")


@verb(app, shape={"round": int, "run_id": str, "path": str, "bytes": int, "sha256": str})
def pull(
    call: Call,
    run_id: RunId = "",
    number: Annotated[int | None, typer.Option("--round", min=0, help="By default the last that is kept.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file; by default RUN-round-N.safetensors, here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write it even if there is such a file.")] = False,
) -> None:
    """Fetch the models behind a round, as a file that `diastole infer --model` takes; whole, or not at all.

    Example: `diastole admin checkpoints pull --round 7 --out model.safetensors`
    """
    with call.open() as stub:
        request = pb.PullCheckpointRequest(run_id=run_id, round=number)
        stream = stub.PullCheckpoint(request, timeout=PULL_SECONDS)
        head = next(stream)
        path = out or Path(f"{head.run_id}-round-{head.round}.safetensors")
        part = path.with_name(path.name + ".part")
        if path.exists() and not force:
            stream.cancel()
            raise FolderError(f"{path} is there already; --force writes over it")
        try:
            seen, size = hashlib.sha256(), 0
            with part.open("wb") as file:
                for each in stream:
                    file.write(each.data)
                    seen.update(each.data)
                    size += len(each.data)
                file.flush()
                os.fsync(file.fileno())
            if seen.hexdigest() != head.file.sha256:
                raise RefusedError(f"{call.address}: {size} of {head.file.size} bytes came, or others; nothing is kept")
            if force:
                part.replace(path)
            else:
                # Unlike a rename, a link never takes another's place.
                os.link(part, path)
        finally:
            with suppress(OSError):
                part.unlink()
    if call.json:
        about = {"round": head.round, "run_id": head.run_id, "path": str(path), "bytes": size}
        print_json(about | {"sha256": head.file.sha256})
    else:
        consoles(call.json).print(f"round {head.round} of run {head.run_id}: {path}, {megabytes(size)}", soft_wrap=True)


@verb(app, gives=pb.Run)
def rollback(
    call: Call,
    run_id: RunId = "",
    number: Annotated[int, typer.Option("--round", min=0, help="Behind which the run goes on.")] = ...,  # type: ignore[assignment]
    yes: Yes = False,
) -> None:
    """Let a run go on from the model of an earlier round; the open round is abandoned, later ones do not count.

    Example: `diastole admin checkpoints rollback 3f1c88a0d2b4 --round 7 --yes`
    """
    call.sure(yes, f"Take back all rounds of {f'run {run_id}' if run_id else 'the run'} behind round {number}?")
    run = call.ask("Rollback", pb.RollbackRequest(run_id=run_id, round=number), ROLLBACK_SECONDS).run
    rests = ", once it is resumed" * (run.pausing or run.state == pb.Run.STATE_PAUSED)
    call.answer(run, f"run {run.run_id} goes on behind round {number}{rests}")
