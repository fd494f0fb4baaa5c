"""Several runs of a comparison at a time, each in a process (`python -m` this module) that goes from run to run."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diastole.experiments.comparison.comparison import RunResult
from diastole.experiments.experiment import parse
from diastole.proto.errors import DiastoleError
from diastole.simulations.compare import Files, Leg, Stand, Tell, run
from diastole.simulations.engines.children import command, environment


class JobError(DiastoleError):
    """A run that failed in a process of its own."""

    reason = "JOB"


def run_all(legs: Sequence[Leg], folder: Path, jobs: int, tell: Tell) -> Generator[tuple[str, RunResult], None, None]:
    """Run the legs, `jobs` at a time, and yield each one's name and result as it is done.

    Closing the generator kills the processes: what they had not finished stands in its checkpoint. Raises
    `JobError` as soon as a run fails.
    """
    waiting, messages = deque(legs), queue.SimpleQueue[tuple[Leg, dict[str, Any]]]()
    processes = [_start(folder) for _ in range(jobs)]
    threads = [threading.Thread(target=_feed, args=(process, waiting, messages), daemon=True) for process in processes]
    try:
        for thread in threads:
            thread.start()
        done = 0
        while done < len(legs):
            leg, message = messages.get()
            if "error" in message:
                raise JobError(f"{leg.name}: {message['error']}")
            tell(Stand(leg, **message))
            if message["done"]:
                result = Files(folder).read(leg)
                if result is None:
                    raise JobError(f"{leg.name}: its result has been removed")
                done += 1
                yield leg.name, result
    finally:
        waiting.clear()
        for process in processes:
            process.kill()
        for process, thread in zip(processes, threads, strict=True):
            process.wait()
            if thread.is_alive():
                thread.join()
            for pipe in (process.stdin, process.stdout):
                # What a process that is gone has not taken cannot be flushed.
                with suppress(OSError):
                    if pipe:
                        pipe.close()


def _start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("diastole.simulations.compare_jobs", str(folder)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        # Ctrl-C is for the parent, which then kills this process.
        start_new_session=True,
    )


def _feed(
    process: subprocess.Popen[str],
    waiting: deque[Leg],
    messages: "queue.SimpleQueue[tuple[Leg, dict[str, Any]]]",
) -> None:
    """Give a process one leg after another and pass on what it says, until none is left or it is killed."""
    into, out = process.stdin, process.stdout
    if not into or not out:
        return
    while waiting:
        try:
            leg = waiting.popleft()
        except IndexError:
            return
        try:
            into.write(_line(leg))
            into.flush()
            for line in out:
                message = json.loads(line)
                messages.put((leg, message))
                if message.get("done", "error" in message):
                    break
            else:
                messages.put((leg, {"error": f"its process ended with code {process.wait()}"}))
                return
        except OSError as error:
            messages.put((leg, {"error": f"its process is gone ({error})"}))
            return


def _line(leg: Leg) -> str:
    fields = {"method": leg.method, "seed": leg.seed, "width": leg.width, "home": leg.home.model_dump(mode="json")}
    return json.dumps(fields) + "\n"


def main() -> None:
    """Run the legs that come over standard input, a line of JSON each; say on standard output how they go."""
    # Whatever a library prints must not come between the lines.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lines = queue.SimpleQueue[str]()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        # Nobody is left to run anything for; what was finished is in its files.
        os._exit(0)

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    threading.Thread(target=listen, daemon=True).start()
    while True:
        fields = json.loads(lines.get())
        leg = Leg(**fields | {"home": parse(fields["home"], "a run")})
        try:
            run(leg, Path(sys.argv[1]), lambda p: say(round=p.round, accuracy=p.accuracy, done=p.done))
        except DiastoleError as error:
            say(error=str(error))


if __name__ == "__main__":
    main()
