"""A fleet of containers on this host, by the engine's own Python package (extra `fleet`)."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diastole.proto.missing import needed
from diastole.simulations.fleet.member import MARK, FleetError, Member

PERIOD = 100_000
GRACE_SECONDS = 10
DATA, STATE, TOKEN = Path("/data.npz"), Path("/state/agent"), Path("/token")


class Containers:
    """Agents as containers, found by a label; their file systems are read-only but for a volume of their own."""

    def __init__(self, fleet: str, address: str, image: str, network: str = "", more: Sequence[str] = ()) -> None:
        """Begin with the engine that the environment names (DOCKER_HOST). Raises `FleetError` if there is none."""
        with needed(FleetError, "containers (--local runs processes)", "docker", "diastole[fleet]"):
            import docker
        self._errors: Any = docker.errors
        self._mount: Any = docker.types.Mount
        try:
            self._engine: Any = docker.from_env()
        except docker.errors.DockerException as error:
            text = str(error).partition("\n")[0]
            raise FleetError(f"no container engine answers ({text}); --local runs processes without one") from None
        self._fleet, self._address, self._image, self._network = fleet, address, image, network
        self._more = more

    def states(self) -> Mapping[str, str]:
        """Return the state of every agent whose container runs."""
        return {name: each.status for name, each in self._found().items() if each.status in ("running", "paused")}

    def start(self, member: Member) -> None:
        """Make an agent's container and start it, or start the one that there is."""
        made = self._found().get(member.name)
        try:
            (made or self._make(member)).start()
        except self._errors.ImageNotFound:
            text = f"{self._image}: the engine has no such image; docker build -t {self._image} . makes it"
            raise FleetError(text) from None
        except self._errors.APIError as error:
            raise FleetError(f"{member.name}: the engine refuses: {error.explanation}") from None

    def remove(self, names: Sequence[str], *, keep: bool = False) -> None:
        """Stop containers, and remove them with their volumes."""
        found = self._found()
        for each in (found[name] for name in names if name in found):
            with suppress(self._errors.NotFound):
                if each.status == "paused":
                    each.unpause()
                each.stop(timeout=GRACE_SECONDS)
                if not keep:
                    each.remove(v=True, force=True)

    def kill(self, name: str) -> None:
        """Kill a container."""
        self._found()[name].kill()

    def pause(self, name: str) -> None:
        """Freeze a container."""
        self._found()[name].pause()

    def resume(self, name: str) -> None:
        """Let a frozen container go on."""
        self._found()[name].unpause()

    def throttle(self, members: Sequence[Member], share: float, seconds: float) -> None:
        """Lower the quotas of containers for so long."""
        found = self._found()
        try:
            for member in members:
                found[member.name].update(cpu_quota=_quota(member, share))
            time.sleep(seconds)
        finally:
            for member in members:
                found[member.name].update(cpu_quota=_quota(member, 1.0))

    def _found(self) -> dict[str, Any]:
        label = f"{MARK.lower()}={self._fleet}"
        found = self._engine.containers.list(all=True, filters={"label": label}, sparse=True)
        return {each.attrs["Labels"]["device"]: each for each in found}

    def _make(self, member: Member) -> Any:
        token = None if member.token is None else TOKEN
        seen = {DATA: member.data} | ({TOKEN: member.token} if member.token else {})
        mounts = [self._mount(str(there), str(here.resolve()), "bind", read_only=True) for there, here in seen.items()]
        more = {"network": self._network} if self._network else {}
        return self._engine.containers.create(
            self._image,
            member.command(self._address, DATA, STATE, token, self._more),
            name=f"diastole-{self._fleet}-{member.name}",
            labels={MARK.lower(): self._fleet, "device": member.name, "tier": member.tier},
            environment={"OMP_NUM_THREADS": str(max(1, int(member.size.cpus)))},
            # Not nano_cpus: an engine lets nobody change that by a quota later.
            cpu_period=PERIOD,
            cpu_quota=_quota(member, 1.0),
            mem_limit=member.size.memory,
            memswap_limit=member.size.memory,
            pids_limit=256,
            read_only=True,
            tmpfs={"/tmp": ""},  # noqa: S108
            mounts=[*mounts, self._mount("/state", None)],
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            init=True,
            extra_hosts={"host.docker.internal": "host-gateway"},
            **more,
        )


def _quota(member: Member, share: float) -> int:
    return max(1000, int(member.size.cpus * share * PERIOD))
