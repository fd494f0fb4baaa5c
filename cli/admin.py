"""`diastole admin`: look at a coordinator and steer it."""

import json as jsonlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.table import Table

from diastole.cli.options import Json, consoles, print_json
from diastole.cli.sizes import megabytes, thousands
from diastole.client.errors import LinkError, RefusedError
from diastole.proto.address import Address as HostPort
from diastole.proto.address import cause, channel_options
from diastole.v1 import admin_pb2 as pb
from diastole.v1 import admin_pb2_grpc

TIMEOUT_SECONDS = 10.0
WIDE_INTEGERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)

app = typer.Typer(help="Look at a running coordinator and steer it.", no_args_is_help=True, add_completion=False)
devices_app = typer.Typer(add_completion=False)
app.add_typer(devices_app, name="devices")
Address = Annotated[str, typer.Option(help="The coordinator's admin address, host:port.")]
TokenFile = Annotated[
    Path, typer.Option(help="The file of the coordinator's admin token; the coordinator says where it is.")
]
DEFAULT, TOKEN_FILE = "127.0.0.1:7701", Path("state/admin.token")


class _Carrying:
    """A stub whose calls carry an operator's token, if there is one."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._stub: Any = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def __getattr__(self, call: str) -> Any:
        return partial(getattr(self._stub, call), metadata=self._metadata)


@contextmanager
def _calling(address: str, token_file: Path) -> Iterator[Any]:
    """Yield a stub; whatever goes wrong in the block is one line."""
    HostPort.parse(address)
    token = _token(token_file)
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        try:
            yield _Carrying(channel, token)
        except grpc.RpcError as error:
            why = cause(address, error.details())
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise LinkError(f"no coordinator's admin service at {address} ({why})") from None
            raise RefusedError(f"{address}: {why}") from None


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
    with _calling(address, token_file) as stub:
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
    context: typer.Context, address: Address = DEFAULT, token_file: TokenFile = TOKEN_FILE, json: Json = False
) -> None:
    """Show the devices that have joined, and what each has brought and spent.

    Example: `diastole admin devices --json`
    """
    if context.invoked_subcommand:
        return
    with _calling(address, token_file) as stub:
        found = _all_devices(stub)
    if json:
        print_json([_plain(device) for device in found])
        return
    table = Table()
    columns = ("device", "tier", "state", "examples", "memory", "accepted", "refused", "down", "up", "MACs", "seconds")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number > 2 else "left")
    for device in found:
        profile = device.profile
        table.add_row(
            device.name,
            profile.tier,
            _word(pb.Device.State.Name(device.state)),
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
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Show which sub-models fit a device, in how many seconds, and why the others do not.

    Example: `diastole admin devices explain pi-7`
    """
    with _calling(address, token_file) as stub:
        sizes = stub.Explain(pb.ExplainRequest(name=name), timeout=TIMEOUT_SECONDS).sizes
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
def watch(address: Address = DEFAULT, token_file: TokenFile = TOKEN_FILE, json: Json = False) -> None:
    """Follow a run from its first event to its end; with --json one document a line.

    Example: `diastole admin watch --json`
    """
    with _calling(address, token_file) as stub:
        for event in stub.Watch(pb.WatchRequest()):
            fields = jsonlib.loads(event.json)
            if json:
                head = {"number": event.number, "seconds": event.seconds, "kind": event.kind}
                line = jsonlib.dumps(head | {"event": fields})
            else:
                line = f"{event.seconds:8.1f} s  {event.kind}  " + ", ".join(f"{k}={v}" for k, v in fields.items())
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


@app.command()
def checkpoint(address: Address = DEFAULT, token_file: TokenFile = TOKEN_FILE, json: Json = False) -> None:
    """Write the global model of the last closed round to the coordinator's state folder.

    Example: `diastole admin checkpoint`
    """
    with _calling(address, token_file) as stub:
        reply = stub.Checkpoint(pb.CheckpointRequest(), timeout=TIMEOUT_SECONDS)
    if json:
        print_json(_plain(reply))
        return
    consoles(json).print(f"round {reply.round}: {reply.path}", soft_wrap=True)


@app.command()
def stop(
    address: Address = DEFAULT,
    now: Annotated[bool, typer.Option(help="Abandon the current round instead of closing it.")] = False,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """End a run after its current round; its model and report are written.

    Example: `diastole admin stop --now`
    """
    with _calling(address, token_file) as stub:
        run = stub.Stop(pb.StopRequest(now=now), timeout=TIMEOUT_SECONDS).run
    if json:
        print_json(_plain(run))
        return
    consoles(json).print(f"run {run.run_id} ends {'now' if now else 'after this round'}")


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(help="The device's name.")],
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="For which the token counts.")] = 1.0,
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Make the token with which a device enrolls, once: `diastole join ADDRESS --enroll TOKEN`.

    Example: `diastole admin enroll pi-7 --hours 24`
    """
    with _calling(address, token_file) as stub:
        reply = stub.Invite(pb.InviteRequest(name=name, seconds=hours * 3600), timeout=TIMEOUT_SECONDS)
    if json:
        print_json(_plain(reply))
        return
    sys.stdout.write(reply.token + "\n")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The device's name.")],
    address: Address = DEFAULT,
    token_file: TokenFile = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Shut an enrolled device out, at once; it can come back with a new token only.

    Example: `diastole admin revoke pi-7`
    """
    with _calling(address, token_file) as stub:
        reply = stub.Revoke(pb.RevokeRequest(name=name), timeout=TIMEOUT_SECONDS)
    if not reply.known:
        raise RefusedError(f"{address}: no device {name!r} is enrolled or has a token")
    if json:
        print_json(_plain(reply))
        return
    consoles(json).print(f"{name} is shut out")


def _token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        if path == TOKEN_FILE:
            return ""
        raise RefusedError(f"{path}: no such file; the coordinator says where its admin token is") from None
    except (OSError, ValueError) as error:
        raise RefusedError(f"{path}: no admin token can be read ({error})") from None


def _all_devices(stub: Any) -> list[pb.Device]:
    found: list[pb.Device] = []
    more = True
    while more:
        request = pb.ListDevicesRequest(after=found[-1].name if found else "")
        page = stub.ListDevices(request, timeout=TIMEOUT_SECONDS)
        found, more = [*found, *page.devices], page.more and len(page.devices) > 0
    return found


def _word(name: str) -> str:
    return name.removeprefix("STATE_").lower()
