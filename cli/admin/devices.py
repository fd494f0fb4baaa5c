"""`diastole admin devices`: who is there, what each has brought, and who may take part."""

from collections.abc import Mapping
from typing import Annotated

import typer

from diastole.cli.admin.verb import SECONDS, Call, DeviceName, OfRun, Yes, group, pairs, table, verb, word
from diastole.cli.sizes import megabytes, thousands
from diastole.client.errors import RefusedError
from diastole.v1 import admin_pb2 as pb

app = group("The devices of a coordinator.")


@verb(app, "list", [pb.Device])
def list_(call: Call, run_id: OfRun = "") -> None:
    """List the devices that have joined, and what each has brought.

    Example: `diastole admin devices list --json`
    """
    found = everybody(call, run_id)
    rows = [
        (
            device.name,
            device.profile.tier,
            state(device),
            str(device.profile.examples),
            str(device.updates_accepted),
            str(device.updates_quarantined),
            megabytes(device.bytes_up),
            f"{device.idle_seconds:.0f} s ago",
        )
        for device in found
    ]
    numbers = ("examples", "accepted", "refused", "up", "heard of")
    listed = table(("device", "tier", "state", *numbers), rows, numbers)
    call.answer(found, listed if found else "no device has joined")


@verb(app, gives=pb.Device)
def show(call: Call, name: DeviceName, run_id: OfRun = "") -> None:
    """Show what a device says of itself, what it has brought, and what it has spent.

    Example: `diastole admin devices show pi-7`
    """
    device = call.ask("ShowDevice", pb.ShowDeviceRequest(run_id=run_id, name=name)).device
    profile = device.profile
    call.answer(
        device,
        pairs(
            [
                ("device", device.name),
                ("tier", profile.tier),
                ("state", state(device)),
                ("kept out", device.kept_out),
                ("labels", shown(device.labels)),
                ("heard of", f"{device.idle_seconds:.0f} s ago"),
                ("agent", profile.agent_version),
                ("examples", str(profile.examples)),
                ("memory", megabytes(profile.memory_bytes) if profile.memory_bytes else ""),
                ("updates accepted", str(device.updates_accepted)),
                ("updates quarantined", str(device.updates_quarantined)),
                ("last sub-model", device.spec_json),
                ("bytes down, up", f"{megabytes(device.bytes_down)}, {megabytes(device.bytes_up)}"),
                ("training", f"{device.train_seconds:.2f} s, {thousands(device.train_macs)} MACs"),
            ]
        ),
    )


@verb(app, gives=[pb.Fit])
def explain(call: Call, name: DeviceName, run_id: OfRun = "") -> None:
    """Show which sub-models fit a device, in how many seconds, and why the others do not.

    Example: `diastole admin devices explain pi-7`
    """
    sizes = call.ask("Explain", pb.ExplainRequest(run_id=run_id, name=name)).sizes
    call.answer(sizes, *map(_fit, sizes))


@verb(app, gives=pb.LabelReply)
def label(
    call: Call,
    name: DeviceName,
    labels: Annotated[list[str], typer.Argument(help="KEY=VALUE sets a label, KEY= takes it away.")],
) -> None:
    """Give a device labels, for people and programs: where it is, whose it is. They outlast the coordinator.

    Example: `diastole admin devices label pi-7 room=kitchen owner=`
    """
    split = [each.partition("=") for each in labels]
    if wrong := [each for each, (key, equals, _) in zip(labels, split, strict=True) if not key or not equals]:
        raise typer.BadParameter(f"{wrong[0]!r} is no label; KEY=VALUE or KEY= is accepted")
    given = {key: value for key, _, value in split if value}
    request = pb.LabelRequest(name=name, set=given, remove=[key for key, _, value in split if not value])
    reply = call.ask("Label", request)
    call.answer(reply, f"{name}: {shown(reply.labels) or 'no labels'}")


@verb(app, gives=pb.SuspendReply)
def suspend(
    call: Call,
    name: DeviceName,
    reason: Annotated[str, typer.Option(help="One line for people.")] = "by the operator",
) -> None:
    """Keep a device out of rounds, from the next one on, until it is released; it stays joined.

    Example: `diastole admin devices suspend pi-7 --reason "its disk fails"`
    """
    reply = call.ask("Suspend", pb.SuspendRequest(name=name, reason=reason))
    call.answer(reply, f"{name} takes part in no round from the next one on, until it is released")


@verb(app, gives=pb.ReleaseReply)
def release(call: Call, name: DeviceName) -> None:
    """Let a device take part again that was suspended, by hand or because its updates were quarantined.

    Example: `diastole admin devices release pi-7`
    """
    reply = call.ask("Release", pb.ReleaseRequest(name=name))
    if not reply.known:
        raise RefusedError(f"{call.address}: device {name!r} is not suspended")
    call.answer(reply, f"{name} may take part again")


@verb(app, gives=pb.RevokeReply)
def revoke(call: Call, name: DeviceName, yes: Yes = False) -> None:
    """Shut an enrolled device out, at once; it can come back with a new token only.

    Example: `diastole admin devices revoke pi-7 --yes`
    """
    call.sure(yes, f"Shut device {name} out, until it enrolls with a new token?")
    reply = call.ask("Revoke", pb.RevokeRequest(name=name))
    if not reply.known:
        raise RefusedError(f"{call.address}: no device {name!r} is enrolled or has a token")
    call.answer(reply, f"{name} is shut out")


def everybody(call: Call, run_id: str) -> list[pb.Device]:
    """Return all devices, by name, however many answers that takes."""
    found, more = list[pb.Device](), True
    with call.open() as stub:
        while more:
            request = pb.ListDevicesRequest(run_id=run_id, after=found[-1].name if found else "")
            page = stub.ListDevices(request, timeout=SECONDS)
            found, more = [*found, *page.devices], page.more and len(page.devices) > 0
    return found


def state(device: pb.Device) -> str:
    """Return what a device is at, in a word or two."""
    kept_out = device.kept_out and device.state == pb.Device.STATE_IDLE
    return "kept out" if kept_out else word(pb.Device.State.Name(device.state))


def shown(labels: Mapping[str, str]) -> str:
    """Return labels as they are given."""
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _fit(size: pb.Fit) -> str:
    found = "fits" if size.fits else f"does not fit: {size.why}"
    if size.levers:
        found = f"fits with {', '.join(size.levers)}; plainly not: {size.why}"
    seconds = f"{size.seconds:.3g} s predicted" if size.seconds else "seconds unknown"
    learned = f", training takes {size.correction:.3g} times what it announced" if size.correction != 1 else ""
    return f"{size.size}: {found} ({seconds}{learned})"
