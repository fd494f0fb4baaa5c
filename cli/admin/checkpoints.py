"""`diastole admin checkpoints`: the global models of closed rounds."""

from diastole.cli.admin.verb import Call, RunId, group, verb
from diastole.v1 import admin_pb2 as pb

app = group("The global models of closed rounds.")


@verb(app, gives=pb.CheckpointReply)
def write(call: Call, run_id: RunId = "") -> None:
    """Write the global model of the last closed round to the coordinator's state folder.

    Example: `diastole admin checkpoints write`
    """
    reply = call.ask("Checkpoint", pb.CheckpointRequest(run_id=run_id))
    call.answer(reply, f"round {reply.round}: {reply.path}")
