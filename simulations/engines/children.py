"""Python processes that work for this one, and the lines of JSON that the two exchange."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Self

from diastole.client.environment import SPINS
from diastole.proto.errors import DiastoleError


class ChildError(DiastoleError):
    """A process that ended without being asked to."""


class Child:
    """A Python process that is told things and says things, a line of JSON each.

    The module that it runs speaks through `Parent`. Only `tell`, `lines` and `read` talk to it; each by one thread.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._module, self._rest = module, b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment(),
            # Ctrl-C is for this process, which then kills the child.
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the descriptor that can be read when the child has said something, for a selector."""
        return self._process.stdout.fileno() if self._process.stdout else -1

    def tell(self, message: Any) -> None:
        """Send a line. Raises `ChildError` if the process is gone."""
        line = (json.dumps(message) + "\n").encode()
        try:
            while line and self._process.stdin:
                line = line[self._process.stdin.write(line) or 0 :]
        except OSError:
            raise self._gone() from None

    def read(self) -> list[Any]:
        """Return what it has said, waiting until there is something. Raises `ChildError` if the process is gone."""
        data = os.read(self.fileno(), 1 << 16)
        if not data:
            raise self._gone()
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise ChildError(f"process {self.pid} ({self._module}) said what is no JSON: {lines[0][:100]!r}") from None

    def lines(self) -> Iterator[Any]:
        """Yield what it says, as it comes. Raises `ChildError` when the process is gone."""
        while True:
            yield from self.read()

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, wait until it is gone, and close its pipes."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            # What a process that is gone has not taken cannot be flushed.
            with suppress(OSError):
                if pipe:
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gone(self) -> ChildError:
        code = self._process.wait()
        return ChildError(f"process {self.pid} ({self._module}) ended with code {code} in the middle of its work")


class Parent:
    """The process that started this one, seen from here; what a library prints goes to standard error."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)

    def say(self, message: Any) -> None:
        """Send a line; ends this process if nobody is left to read it."""
        try:
            os.write(self._out, (json.dumps(message) + "\n").encode())
        except BrokenPipeError:
            os._exit(0)

    def lines(self) -> Iterator[Any]:
        """Yield what it says, as it comes, until it is gone."""
        for line in sys.stdin:
            yield json.loads(line)

    def end_with_it(self, messages: "Any") -> None:
        """Put what it says into a queue, in a thread of its own, and end this process as soon as it is gone."""

        def listen() -> None:
            for message in self.lines():
                messages.put(message)
            # Nobody is left to run anything for; what was finished is in its files.
            os._exit(0)

        threading.Thread(target=listen, daemon=True).start()


def environment() -> dict[str, str]:
    """Return this process's environment for a process of one thread that finds the modules which this one finds."""
    # An empty entry is the working folder; left empty, it would be none at all if it were the only one.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return SPINS | os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}
