"""`diastole fleet`: agents on this host within real limits, between a simulation and the field."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diastole.cli.admin.verb import SECONDS, Call, Yes, group
from diastole.cli.calling import TOKEN_FILE
from diastole.cli.options import Json, consoles, print_json
from diastole.cli.sizes import parse_bytes
from diastole.proto.address import Address
from diastole.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from diastole.simulations.fleet.fleet import Fleet, Tier

app = group(
    "Run agents on this host within real limits, as containers or processes; kill, pause and throttle some.\n\n"
    "Example: `diastole fleet up 127.0.0.1:7700 --data shards --tier small=3,cpus=0.5,memory=768MiB --local`"
)
Folder = Annotated[Path, typer.Option(help="Where the fleet's plan, and what belongs to its agents, is kept.")]
TIER = re.compile(r"([^=,]+)=([0-9]+)((?:,(?:cpus|memory|training)=[^,]+)*)")
COUNT = re.compile(r"([^=,]+)=([0-9]+)")


@app.command()
def up(
    address: Annotated[str, typer.Argument(help="The coordinator, host:port, as agents call it.")],
    data: Annotated[Path, typer.Option(help="A folder of archives for each tier, as `diastole shards` writes it.")],
    tier: Annotated[
        list[str],
        typer.Option(
            help="NAME=COUNT,cpus=CORES,memory=SIZE,training=SIZE: what each agent may take, and what of it `join "
            "--memory` is told; by default one core, 1 GiB and what is free."
        ),
    ],
    folder: Folder = Path("fleet"),
    local: Annotated[bool, typer.Option("--local", help="Processes of this machine instead of containers.")] = False,
    cgroup: Annotated[
        str, typer.Option(help="With --local: a control group (version 2) of this user's that holds the limits.")
    ] = "",
    image: Annotated[str, typer.Option(help="The agents' image.")] = "diastole-agent",
    network: Annotated[str, typer.Option(help="The containers' network; by default the engine's own.")] = "",
    admin: Annotated[
        str, typer.Option(help="The coordinator's admin address: each agent enrolls with a token made there.")
    ] = "",
    token_file: Annotated[Path, typer.Option(help="Shows there who asks.")] = TOKEN_FILE,
    join: Annotated[
        list[str] | None, typer.Option(help="A further option of `diastole join`, such as --join=--plan=reference.")
    ] = None,
    json: Json = False,
) -> None:
    """Start a fleet; its agents go on when this command, and this shell, have ended.

    Example: `diastole fleet up 127.0.0.1:7700 --data shards --tier small=3,cpus=0.5,memory=768MiB --local`
    """
    from diastole.simulations.fleet.fleet import Fleet, Plan

    Address.parse(address)
    plan = Plan(
        address,
        str(data.resolve()),
        dict(_tier(text) for text in tier),
        local,
        image,
        network,
        cgroup,
        admin,
        str(token_file.resolve()),
        tuple(join or ()),
    )
    fleet = Fleet.begin(folder, plan)
    _started(fleet, json)


@app.command()
def scale(
    counts: Annotated[list[str], typer.Argument(help="TIER=COUNT: how many there are to be.")],
    folder: Folder = Path("fleet"),
    json: Json = False,
) -> None:
    """Start or end agents until each tier has as many as are asked for; what has ended by itself is started again.

    Example: `diastole fleet scale small=5 large=0`
    """
    from diastole.simulations.fleet.fleet import Fleet

    fleet = Fleet.open(folder)
    fleet.scale(dict(_count(text) for text in counts))
    _started(fleet, json)


@app.command("list")
def show(folder: Folder = Path("fleet"), json: Json = False) -> None:
    """List the agents, their limits, and whether they run.

    Example: `diastole fleet list`
    """
    from diastole.simulations.fleet.fleet import Fleet

    fleet = Fleet.open(folder)
    states = fleet.back.states()
    rows = [
        {
            "name": each.name,
            "tier": each.tier,
            "state": states.get(each.name, "ended"),
            "cpus": each.size.cpus,
            "memory": each.size.memory,
        }
        for each in fleet.members()
    ]
    if json:
        print_json(rows)
        return
    for row in rows:
        mib = int(str(row["memory"])) >> 20
        line = f"{row['name']}  {row['state']}  {row['cpus']} cores  {mib} MiB"
        consoles(json).print(line, soft_wrap=True)


@app.command()
def chaos(
    folder: Folder = Path("fleet"),
    kind: Annotated[
        list[str] | None, typer.Option(help="kill, pause or throttle; several may be given, by default all.")
    ] = None,
    times: Annotated[int, typer.Option(min=1, help="How many times something is done.")] = 10,
    at_once: Annotated[int, typer.Option(min=1, help="To so many agents at a time.")] = 1,
    hold: Annotated[float, typer.Option(min=0, help="Seconds after which it is undone.")] = 10.0,
    rest: Annotated[float, typer.Option(min=0, help="Seconds between.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Draws what is done to whom.")] = 0,
    json: Json = False,
) -> None:
    """Kill, pause and throttle some agents, one draw after the other; a killed one is started again.

    Example: `diastole fleet chaos --kind kill --kind pause --times 20 --seed 7`
    """
    # Imports torch, which takes seconds.
    from diastole.simulations.fleet.chaos import KINDS, Act, disturb, drawn
    from diastole.simulations.fleet.fleet import Fleet

    if wrong := [each for each in kind or () if each not in KINDS]:
        raise typer.BadParameter(f"--kind {wrong[0]!r}; {', '.join(KINDS)} are accepted")
    fleet, done = Fleet.open(folder), list[dict[str, object]]()
    names = [each.name for each in fleet.members()]

    def tell(act: Act) -> None:
        done.append({"kind": act.kind, "names": list(act.names)})
        if not json:
            consoles(json).print(f"{act.kind}: {', '.join(act.names) or 'nobody that runs'}", soft_wrap=True)

    kinds = [each for each in KINDS if not kind or each in kind]
    disturb(fleet, drawn(names, kinds, times, at_once, seed), hold, rest, tell)
    if json:
        print_json(done)


@app.command()
def down(folder: Folder = Path("fleet"), yes: Yes = False, json: Json = False) -> None:
    """End every agent, and remove what it kept.

    Example: `diastole fleet down --yes`
    """
    from diastole.simulations.fleet.fleet import Fleet

    fleet = Fleet.open(folder)
    Call("", TOKEN_FILE, json).sure(yes, f"End the fleet of {folder}, and remove what its agents kept?")
    ended = fleet.down()
    if json:
        print_json({"ended": ended})
    else:
        consoles(json).print(f"{len(ended)} agents ended", soft_wrap=True)


def _started(fleet: "Fleet", json: bool) -> None:
    def invite(name: str) -> str:
        call = Call(fleet.plan.admin, Path(fleet.plan.token_file), json)
        return str(call.ask("Invite", pb.InviteRequest(name=name, seconds=3600), SECONDS).token)

    started = fleet.start(invite)
    if json:
        print_json({"started": started})
    else:
        where = f"; logs are in {fleet.agents}" if fleet.plan.local else ""
        consoles(json).print(f"{len(started)} agents started{where}", soft_wrap=True)


def _count(text: str) -> tuple[str, int]:
    found = COUNT.fullmatch(text)
    if not found:
        raise typer.BadParameter(f"{text!r} is not TIER=COUNT, such as small=3")
    return found[1], int(found[2])


def _tier(text: str) -> tuple[str, "Tier"]:
    from diastole.simulations.fleet.fleet import Tier
    from diastole.simulations.fleet.member import Size

    found = TIER.fullmatch(text)
    if not found:
        raise typer.BadParameter(f"{text!r} is no tier; small=3,cpus=0.5,memory=768MiB,training=160kB is accepted")
    given = dict(part.split("=", 1) for part in found[3].split(",")[1:])
    try:
        cpus = float(given.get("cpus", "1"))
    except ValueError:
        cpus = 0.0
    if not 0.01 <= cpus <= 1024:
        raise typer.BadParameter(f"cpus={given['cpus']} of tier {found[1]!r}; 0.01 to 1024 cores are accepted")
    if "training" in given:
        parse_bytes(given["training"])
    size = Size(cpus, parse_bytes(given.get("memory", "1GiB")), given.get("training", ""))
    return found[1], Tier(int(found[2]), size)
