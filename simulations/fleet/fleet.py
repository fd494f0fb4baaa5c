"""A fleet: agents of several tiers on this host, and the file by which another shell knows them."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diastole.proto.files import write_bytes
from diastole.proto.jsontext import from_json
from diastole.simulations.fleet.containers import Containers
from diastole.simulations.fleet.local import Local
from diastole.simulations.fleet.member import Backend, FleetError, Member, Size

FILE = "fleet.json"


@dataclass(frozen=True, slots=True)
class Tier:
    """How many agents of a tier there are to be, and what each may take."""

    count: int
    size: Size


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fleet is to be.

    Attributes:
        address: of the coordinator, as agents call it.
        data: the folder with a folder of archives for each tier, as `diastole shards` writes it.
        tiers: by name.
        local: processes instead of containers.
        image: of containers.
        network: that containers are on; empty for the engine's default.
        group: the control group of processes; empty for the limits that every process has.
        admin: where tokens are made, `host:port`; empty if agents need none.
        token_file: shows there who asks.
        more: further options of `diastole join`.
        name: by which agents are found.

    """

    address: str
    data: str
    tiers: Mapping[str, Tier]
    local: bool = False
    image: str = ""
    network: str = ""
    group: str = ""
    admin: str = ""
    token_file: str = ""
    more: tuple[str, ...] = ()
    name: str = ""

    def members(self, folder: Path) -> Iterator[Member]:
        """Yield the agents that there are to be. Raises `FleetError` if there are fewer archives."""
        for tier, each in self.tiers.items():
            shards = sorted((Path(self.data) / tier).glob("*.npz"))
            if len(shards) < each.count:
                text = f"{each.count} agents of tier {tier!r}, but {len(shards)} archives in {Path(self.data) / tier}"
                raise FleetError(f"{text}; so many agents are accepted, one for each")
            for number, shard in enumerate(shards[: each.count], 1):
                name = f"{tier}-{number}"
                yield Member(name, tier, each.size, shard, folder / name / "token" if self.admin else None)


class Fleet:
    """A fleet whose plan is kept in a folder; which agents there are, only the system or the engine says."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Take a fleet that has begun. Raises `FleetError` where its agents cannot be looked for."""
        self.folder, self.plan = folder, plan
        self.agents = (folder / "agents").resolve()
        self.back: Backend = (
            Local(plan.name, self.agents, plan.address, plan.more, plan.group)
            if plan.local
            else Containers(plan.name, plan.address, plan.image, plan.network, plan.more)
        )

    @classmethod
    def begin(cls, folder: Path, plan: Plan) -> "Fleet":
        """Begin a fleet in a folder that holds none. Raises `FleetError`."""
        if (folder / FILE).exists():
            raise FleetError(f"--folder {folder}: a fleet is there already; diastole fleet scale or down is accepted")
        found = cls(folder, replace(plan, name=uuid.uuid4().hex[:12]))
        list(found.members())
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found._keep()
        return found

    @classmethod
    def open(cls, folder: Path) -> "Fleet":
        """Open the fleet of a folder. Raises `FleetError`."""
        try:
            document = from_json((folder / FILE).read_bytes())
            tiers = {name: Tier(each["count"], Size(**each["size"])) for name, each in document.pop("tiers").items()}
            plan = Plan(tiers=tiers, more=tuple(document.pop("more")), **document)
        except FileNotFoundError:
            raise FleetError(f"--folder {folder}: no fleet is there; diastole fleet up makes one") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FleetError(f"{folder / FILE}: cannot be read ({error})") from None
        return cls(folder, plan)

    def members(self) -> list[Member]:
        """Return the agents that there are to be."""
        return list(self.plan.members(self.agents))

    def scale(self, counts: Mapping[str, int]) -> None:
        """Change how many agents there are to be of some tiers. Raises `FleetError`."""
        if unknown := sorted(set(counts) - set(self.plan.tiers)):
            raise FleetError(f"no tier {unknown[0]!r}; this fleet has {', '.join(self.plan.tiers)}")
        tiers = {name: replace(each, count=counts.get(name, each.count)) for name, each in self.plan.tiers.items()}
        plan, before = replace(self.plan, tiers=tiers), {each.name for each in self.members()}
        after = {each.name for each in plan.members(self.agents)}
        self.back.remove(sorted((before | set(self.back.states())) - after))
        self.plan = plan
        self._keep()

    def start(self, invite: Callable[[str], str]) -> list[str]:
        """Start each agent that is to be and is not there, and return their names; `invite` makes a token."""
        there, started = self.back.states(), list[str]()
        for member in self.members():
            if member.name in there:
                continue
            if member.token is not None and not member.token.exists():
                member.token.parent.mkdir(parents=True, exist_ok=True)
                # Of anybody who could reach it, which is nobody: a container's user is another, and the folder is ours.
                write_bytes(member.token, f"{invite(member.name)}\n".encode(), 0o644)
            self.back.start(member)
            started.append(member.name)
        return started

    def down(self) -> list[str]:
        """End every agent, remove what was kept of them, and return their names."""
        names = {f"{tier}-{number + 1}" for tier, each in self.plan.tiers.items() for number in range(each.count)}
        running = sorted(self.back.states())
        self.back.remove(sorted(names | set(running)))
        (self.folder / FILE).unlink(missing_ok=True)
        shutil.rmtree(self.agents, ignore_errors=True)
        return running

    def stands(self) -> bool:
        """Return whether the fleet is still there: another shell may have taken it down."""
        try:
            return bool(from_json((self.folder / FILE).read_bytes())["name"] == self.plan.name)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _keep(self) -> None:
        write_bytes(self.folder / FILE, json.dumps(asdict(self.plan), indent=2).encode(), 0o600)
