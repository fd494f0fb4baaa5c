"""A fleet of processes on this machine (Linux), within control groups or the limits that every process has."""

import math
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from diastole.simulations.fleet.member import MARK, FleetError, Member

PROCESSES = Path("/proc")
PERIOD = 100_000
"""Microseconds in which a control group's quota of the processor is given out."""

SLICE = 0.2
"""Seconds of which a throttled process without a control group runs its share."""

START_SECONDS, GRACE_SECONDS = 2.0, 10.0
LOOK_SECONDS = 0.005


class Local:
    """Agents as processes, found by a mark in their environment: in another shell, and after a crash, too."""

    def __init__(self, fleet: str, folder: Path, address: str, more: Sequence[str] = (), group: str = "") -> None:
        """Begin; `group` is a control group (version 2) in which this user may make others.

        Raises `FleetError` if it is none, or the machine is no Linux.
        """
        if not (PROCESSES / "self/environ").exists():
            raise FleetError("--local: finds its agents in /proc, which this system does not have; Linux is accepted")
        self._mark, self._folder, self._address, self._more = f"{MARK}={fleet}:".encode(), folder, address, more
        self._group = Path(group) / f"diastole-{fleet}" if group else None
        if group and not {"cpu", "memory"} <= set(_read(Path(group) / "cgroup.subtree_control").split()):
            raise FleetError(f"--cgroup {group}: has no cpu and memory in cgroup.subtree_control; such one is accepted")

    def states(self) -> Mapping[str, str]:
        """Return the state of every agent that runs."""
        found = dict[str, str]()
        for pid, name in self._found():
            stopped = _read(PROCESSES / str(pid) / "stat").rpartition(") ")[2].startswith("T")
            # Of an agent's several processes, one that runs decides.
            if found.get(name) != "running":
                found[name] = "paused" if stopped else "running"
        return found

    def start(self, member: Member) -> None:
        """Start a process that outlives this one; its log and its state are in its own folder."""
        own = self._folder / member.name
        own.mkdir(parents=True, exist_ok=True)
        size = member.size
        words = member.command(self._address, member.data.resolve(), own / "state", member.token, self._more)
        if self._group is None and size.cpus < 1:
            # No limit of a process is a share of a core: the agent rests by itself.
            words += ["--cpu", str(size.cpus)]
        mark = f"{self._mark.decode().partition('=')[2]}{member.name}"
        env = os.environ | {MARK: mark, "OMP_NUM_THREADS": str(max(1, int(size.cpus)))}
        # A shell that ends at once: the agent becomes a child of process 1, which takes note when it ends.
        shell = ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-m", "diastole.cli.main", *words]
        group = self._made(member)
        cores = sorted(os.sched_getaffinity(0))[: max(1, math.ceil(size.cpus))]

        def limited() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text("0")
                return
            resource.setrlimit(resource.RLIMIT_DATA, (size.memory, size.memory))
            os.sched_setaffinity(0, cores)

        with (own / "log").open("ab") as log:
            subprocess.run(
                shell,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=limited,
                check=True,
            )
        # Until then its environment is the shell's, or that of nobody, and it is not found.
        until = time.monotonic() + START_SECONDS
        while not self._began(member.name) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)

    def remove(self, names: Sequence[str], *, keep: bool = False) -> None:
        """End agents, and remove their folders."""
        for name in names:
            self._signal(name, signal.SIGTERM)
            self._signal(name, signal.SIGCONT)
        until = time.monotonic() + GRACE_SECONDS
        for name in names:
            self._wait(name, until)
            self.kill(name)
            if self._group is not None:
                with suppress(OSError):
                    (self._group / name).rmdir()
            if not keep:
                shutil.rmtree(self._folder / name, ignore_errors=True)
        if self._group is not None:
            with suppress(OSError):
                self._group.rmdir()

    def kill(self, name: str) -> None:
        """End an agent's processes at once."""
        self._signal(name, signal.SIGKILL)
        self._wait(name, time.monotonic() + GRACE_SECONDS)

    def pause(self, name: str) -> None:
        """Stop an agent's processes, and return when they stand, or after a second."""
        self._signal(name, signal.SIGSTOP)
        until = time.monotonic() + 1
        while self.states().get(name) == "running" and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)

    def resume(self, name: str) -> None:
        """Let an agent's processes go on."""
        self._signal(name, signal.SIGCONT)

    def throttle(self, members: Sequence[Member], share: float, seconds: float) -> None:
        """Lower the quotas of agents; without control groups, stop their processes most of the time."""
        until = time.monotonic() + seconds
        try:
            if self._group is not None:
                for member in members:
                    self._quota(member, share)
                time.sleep(seconds)
            while (left := until - time.monotonic()) > 0:
                for call, part in ((self.resume, share), (self.pause, 1 - share)):
                    for member in members:
                        call(member.name)
                    time.sleep(min(left, SLICE * part))
        finally:
            for member in members:
                self.resume(member.name)
                if self._group is not None:
                    self._quota(member, 1.0)

    def _made(self, member: Member) -> Path | None:
        if self._group is None:
            return None
        own = self._group / member.name
        own.mkdir(parents=True, exist_ok=True)
        (self._group / "cgroup.subtree_control").write_text("+cpu +memory")
        (own / "memory.max").write_text(str(member.size.memory))
        self._quota(member, 1.0)
        return own

    def _quota(self, member: Member, share: float) -> None:
        if self._group is not None:
            quota = max(1000, int(member.size.cpus * share * PERIOD))
            (self._group / member.name / "cpu.max").write_text(f"{quota} {PERIOD}")

    def _found(self) -> Iterator[tuple[int, str]]:
        """Yield each process of the fleet, with the name of its agent; one that has ended has no environment."""
        for place in PROCESSES.iterdir():
            if place.name.isdecimal():
                with suppress(OSError):
                    for entry in (place / "environ").read_bytes().split(b"\0"):
                        if entry.startswith(self._mark):
                            yield int(place.name), entry.removeprefix(self._mark).decode()

    def _began(self, name: str) -> bool:
        """Return whether an agent is Python already, and not the shell that starts it."""
        found = (PROCESSES / str(pid) / "cmdline" for pid, own in self._found() if own == name)
        return any(_read(path).startswith(f"{sys.executable}\0") for path in found)

    def _signal(self, name: str, number: signal.Signals) -> None:
        for pid, own in self._found():
            if own == name:
                with suppress(OSError):
                    # Nobody else's process, should this one have ended and its number be given anew.
                    handle = os.pidfd_open(pid)
                    try:
                        if self._mark in _bytes(PROCESSES / str(pid) / "environ"):
                            signal.pidfd_send_signal(handle, number)
                    finally:
                        os.close(handle)

    def _wait(self, name: str, until: float) -> None:
        for pid, own in self._found():
            if own == name:
                with suppress(OSError):
                    handle = os.pidfd_open(pid)
                    try:
                        select.select([handle], [], [], max(0.0, until - time.monotonic()))
                    finally:
                        os.close(handle)


def _read(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
