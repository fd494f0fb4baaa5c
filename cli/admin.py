"""`diastole admin`: look at a coordinator and steer it."""

import json as jsonlib
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.table import Table

from diastole.cli.calling import TOKEN_FILE, calling, operators_folder
from diastole.cli.options import Json, consoles, print_json
from diastole.cli.sizes import megabytes, thousands
from diastole.client.errors import RefusedError
from diastole.proto.identity import OPERATOR
from diastole.proto.invitation import Token, TokenError
from diastole.v1 import admin_pb2 as pb

TIMEOUT_SECONDS = 10.0
SUBMIT_SECONDS = 120.0
"""The coordinator reads the data set before it answers."""
WIDE_INTEGERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)

app = typer.Typer(help="Look at a running coordinator and steer it.", no_args_is_help=True, add_completion=False)
devices_app = typer.Typer(add_completion=False)
app.add_typer(devices_app, name="devices")
Address = Annotated[str, typer.Option(help="The coordinator's admin address, host:port.")]
TokenFile = Annotated[
    Path, typer.Option(help="The file that shows who calls, on the coordinator's machine; the coordinator says where.")
]
Operator = Annotated[bool, typer.Option(help="The name is an operator's, of another machine, not a device's.")]
RunId = Annotated[str, typer.Argument(help="Of several runs, the one that is meant, by its name.", show_default=False)]
OfRun = Annotated[str, typer.Option("--run", help="Of several runs, the one that is meant, by its name.")]
DEFAULT = "127.0.0.1:7701"


def _plain(message: Message) -> dict[str, Any]:
    """Return a message for JSON; 64-bit integers are numbers there, not the strings that `MessageToDict` makes."""
    document = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name not in document or (field.message_type and field.message_type.GetOptions().map_entry):
            continue
        if field.cpp_type in WIDE_INTEGERS:
            document[field.name] = list(value) if field.is_repeated else value
        elif field.message_type is not None:
            document[field.name] = [_plain(part) for part in value] if field.is_repeated else _plain(value)
    return document


@app.command()
def status(address: Address = DEFAULT, token_file: TokenFile = TOKEN_FILE, json: Json = False) -> None:
    """Show the runs of a coordinator.

    Example: `diastole admin status --address 127.0.0.1:7701`
    """
    with calling(address, token_file) as stub:
        runs = stub.ListRuns(pb.ListRunsRequest(), timeout=TIMEOUT_SECONDS).runs
    if json:
        print_json([_plain(run) for run in runs])
        return
    for run in runs:
        standing = f", {run.standing}" if run.standing else ""
        consoles(json).print(
            f"run {run.run_id}: {_word(pb.Run.State.Name(run.state))}, {run.method}, round {run.round} of {run.rounds}"
            f"{standing}, {run.devices_online} devices online, {run.quarantined} updates quarantined, "
            f"{run.elapsed_seconds:.0f} s",
            soft_wrap=True,
        )


@devices_app.callback(invoke_without_command=True)
def devices(
    context: typer.Context,
    run_id: OfRun = "",
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Show the devices that have joined, and what each has brought and spent.

    Example: `diastole admin devices --json`
    """
    if context.invoked_subcommand:
        return
    with calling(address, token_file) as stub:
        found = _all_devices(stub, run_id)
    if json:
        print_json([_plain(device) for device in found])
        return
    table = Table()
    columns = ("device", "tier", "state", "examples", "memory", "accepted", "refused", "down", "up", "MACs", "seconds")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number > 2 else "left")
    for device in found:
        profile, online = device.profile, device.state == pb.Device.STATE_IDLE
        table.add_row(
            device.name,
            profile.tier,
            "kept out" if device.kept_out and online else _word(pb.Device.State.Name(device.state)),
            str(profile.examples),
            megabytes(profile.memory_bytes) if profile.memory_bytes else "-",
            str(device.updates_accepted),
            str(device.updates_quarantined),
            megabytes(device.bytes_down),
            megabytes(device.bytes_up),
            thousands(device.train_macs),
            f"{device.train_seconds:.2f}",
        )
    consoles(json).print(table)


@devices_app.command()
def explain(
    name: Annotated[str, typer.Argument(help="The device's name.")],
    run_id: OfRun = "",
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Show which sub-models fit a device, in how many seconds, and why the others do not.

    Example: `diastole admin devices explain pi-7`
    """
    with calling(address, token_file) as stub:
        sizes = stub.Explain(pb.ExplainRequest(run_id=run_id, name=name), timeout=TIMEOUT_SECONDS).sizes
    if json:
        print_json([_plain(size) for size in sizes])
        return
    for size in sizes:
        found = "fits" if size.fits else f"does not fit: {size.why}"
        if size.levers:
            found = f"fits with {', '.join(size.levers)}; plainly not: {size.why}"
        seconds = f"{size.seconds:.3g} s predicted" if size.seconds else "seconds unknown"
        learned = f", training takes {size.correction:.3g} times what it announced" if size.correction != 1 else ""
        line = f"{size.size}: {found} ({seconds}{learned})"
        consoles(json).print(line, soft_wrap=True)


@app.command()
def watch(
    run_id: RunId = "", address: Address = DEFAULT, token_file: TokenFile = TOKEN_FILE, json: Json = False
) -> None:
    """Follow a run from its first event to its end; with --json one document a line.

    Example: `diastole admin watch --json`
    """
    with calling(address, token_file) as stub:
        for event in stub.Watch(pb.WatchRequest(run_id=run_id)):
            fields = jsonlib.loads(event.json)
            if json:
                head = {"number": event.number, "seconds": event.seconds, "kind": event.kind}
                line = jsonlib.dumps(head | {"event": fields})
            else:
                line = f"{event.seconds:8.1f} s  {event.kind}  " + ", ".join(f"{k}={v}" for k, v in fields.items())
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


@app.command()
def checkpoint(
    run_id: RunId = "", address: Address = DEFAULT, token_file: TokenFile = TOKEN_FILE, json: Json = False
) -> None:
    """Write the global model of the last closed round to the coordinator's state folder.

    Example: `diastole admin checkpoint`
    """
    with calling(address, token_file) as stub:
        reply = stub.Checkpoint(pb.CheckpointRequest(run_id=run_id), timeout=TIMEOUT_SECONDS)
    _answer(reply, json, f"round {reply.round}: {reply.path}")


@app.command()
def stop(
    run_id: RunId = "",
    address: Address = DEFAULT,
    now: Annotated[bool, typer.Option(help="Abandon the current round instead of closing it.")] = False,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """End a run after its current round; its model and report are written.

    Example: `diastole admin stop --now`
    """
    with calling(address, token_file) as stub:
        run = stub.Stop(pb.StopRequest(run_id=run_id, now=now), timeout=TIMEOUT_SECONDS).run
    _answer(run, json, f"run {run.run_id} ends {'now' if now else 'after this round'}")


@app.command()
def submit(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file; its data are the coordinator's.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Put an experiment into a coordinator's queue, behind all others.

    Example: `diastole admin submit simulations/examples/digits.toml`
    """
    # Imports torch, which the other commands do without.
    from diastole.experiments import toml

    document = jsonlib.dumps(toml.read(experiment, change or []))
    with calling(address, token_file) as stub:
        run = stub.Submit(pb.SubmitRequest(experiment_json=document), timeout=SUBMIT_SECONDS).run
    _answer(run, json, f"run {run.run_id} is queued: {run.method}, {run.rounds} rounds")


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(help="The device's name, or the operator's.")],
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="For which the token counts.")] = 1.0,
    operator: Operator = False,
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Make the token with which a device enrolls, once: `diastole join ADDRESS --enroll TOKEN`.

    An operator of another machine enrolls with `diastole admin login TOKEN`.

    Example: `diastole admin enroll pi-7 --hours 24`
    """
    with calling(address, token_file) as stub:
        request = pb.InviteRequest(name=name, seconds=hours * 3600, operator=operator)
        reply = stub.Invite(request, timeout=TIMEOUT_SECONDS)
    _answer(reply, json, reply.token)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The device's name, or the operator's.")],
    operator: Operator = False,
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Shut an enrolled device or operator out, at once, who can come back with a new token only.

    Example: `diastole admin revoke pi-7`
    """
    with calling(address, token_file) as stub:
        reply = stub.Revoke(pb.RevokeRequest(name=name, operator=operator), timeout=TIMEOUT_SECONDS)
    if not reply.known:
        raise RefusedError(f"{address}: no {'operator' if operator else 'device'} {name!r} is enrolled or has a token")
    _answer(reply, json, f"{name} is shut out")


@app.command()
def suspend(
    name: Annotated[str, typer.Argument(help="The device's name.")],
    reason: Annotated[str, typer.Option(help="One line for people.")] = "by the operator",
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Keep a device out of rounds, from the next one on, until it is released; it stays joined.

    Example: `diastole admin suspend pi-7 --reason "its disk fails"`
    """
    with calling(address, token_file) as stub:
        reply = stub.Suspend(pb.SuspendRequest(name=name, reason=reason), timeout=TIMEOUT_SECONDS)
    _answer(reply, json, f"{name} takes part in no round from the next one on, until it is released")


@app.command()
def release(
    name: Annotated[str, typer.Argument(help="The device's name.")],
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Let a device take part again that was suspended, by hand or because its updates were quarantined.

    Example: `diastole admin release pi-7`
    """
    with calling(address, token_file) as stub:
        reply = stub.Release(pb.ReleaseRequest(name=name), timeout=TIMEOUT_SECONDS)
    if not reply.known:
        raise RefusedError(f"{address}: device {name!r} is not suspended")
    _answer(reply, json, f"{name} may take part again")


@app.command()
def health(address: Address = DEFAULT, token_file: TokenFile = TOKEN_FILE) -> None:
    """Ask whether the coordinator serves, as Docker and Kubernetes do: the exit code is 0 if so, without a token.

    Example: `diastole admin health`
    """
    with calling(address, token_file) as stub:
        if not stub.serves(TIMEOUT_SECONDS):
            raise RefusedError(f"{address}: the coordinator does not serve now")
    sys.stdout.write("serving\n")


@app.command()
def login(
    token: Annotated[str, typer.Argument(help="What `diastole admin enroll --operator NAME` has printed.")],
    address: Address = DEFAULT,
) -> None:
    """Enroll an operator on this machine, once; from then on the other commands call that coordinator over mutual TLS.

    Example: `diastole admin login TOKEN --address coordinator.example:7701`
    """
    # Imports torch, which the other commands do without.
    from diastole.client.enrolling import enroll as enrolling

    given = Token.parse(token)
    if not given.name.startswith(OPERATOR):
        raise TokenError(f"this token is of the device {given.name!r}; diastole join --enroll takes it")
    folder = operators_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    enrolling(folder, address, given)
    sys.stdout.write(
        f"{given.name.removeprefix(OPERATOR)} is an operator of {address}; the certificate is in {folder}\n"
    )


@app.command()
def audit(
    most: Annotated[int, typer.Option(min=1, max=1000, help="The last so many lines.")] = 100,
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Show who has called, for what, and how it ended: operators, and devices that were enrolled, renewed or refused.

    Example: `diastole admin audit --most 20`
    """
    with calling(address, token_file) as stub:
        lines = stub.ListAudit(pb.ListAuditRequest(most=most), timeout=TIMEOUT_SECONDS).lines
    if json:
        print_json([_plain(line) for line in lines])
        return
    table = Table()
    for column in ("time", "who", "call", "asked for", "outcome"):
        table.add_column(column)
    for line in lines:
        when = datetime.fromtimestamp(line.at).astimezone().isoformat(" ", "seconds")
        table.add_row(when, line.who, line.call, line.detail, line.outcome)
    consoles(json).print(table)


def _answer(message: Message, json: bool, text: str) -> None:
    """Say what came of a call: in words, or with `json` as the message."""
    if json:
        print_json(_plain(message))
    else:
        consoles(json).print(text, soft_wrap=True)


def _all_devices(stub: Any, run_id: str) -> list[pb.Device]:
    found: list[pb.Device] = []
    more = True
    while more:
        request = pb.ListDevicesRequest(run_id=run_id, after=found[-1].name if found else "")
        page = stub.ListDevices(request, timeout=TIMEOUT_SECONDS)
        found, more = [*found, *page.devices], page.more and len(page.devices) > 0
    return found


def _word(name: str) -> str:
    return name.removeprefix("STATE_").lower()
