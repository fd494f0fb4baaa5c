"""Several runs of a comparison at a time, each in a process (`python -m` this module) that goes from run to run."""

import queue
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from diastole.experiments.comparison.runs import RunResult
from diastole.proto.errors import DiastoleError
from diastole.simulations.compare import play
from diastole.simulations.compared import ComparedRun, Files, Standing, Tell
from diastole.simulations.engines.children import Child, Parent
from diastole.simulations.simulation import Simulation

SAID = ("round", "score", "done", "metric")


class JobError(DiastoleError):
    """A run that failed in a process of its own."""


def run_all(
    runs: Sequence[ComparedRun], folder: Path, jobs: int, tell: Tell, track: Sequence[str] = ()
) -> Generator[tuple[str, RunResult], None, None]:
    """Play the runs, `jobs` at a time, and yield each one's name and result as it is done; `track` names trackers.

    Closing the generator kills the processes: what they had not finished stands in its checkpoint. Raises
    `JobError` as soon as a run fails.
    """
    waiting, messages, files = deque(runs), queue.SimpleQueue[tuple[ComparedRun, dict[str, Any]]](), Files(folder)
    children = [Child("diastole.simulations.compare_jobs", str(folder), *track) for _ in range(jobs)]
    threads = [threading.Thread(target=_feed, args=(child, waiting, messages), daemon=True) for child in children]
    try:
        for thread in threads:
            thread.start()
        done = 0
        while done < len(runs):
            run, message = messages.get()
            if "error" in message:
                raise JobError(f"{run.name}: {message['error']}")
            tell(Standing(run, **message))
            if message["done"]:
                result = files.read(run)
                if result is None:
                    raise JobError(f"{run.name}: its result has been removed")
                done += 1
                yield run.name, result
    finally:
        waiting.clear()
        for child in children:
            child.kill()
        for child, thread in zip(children, threads, strict=True):
            if thread.is_alive():
                thread.join()
            child.close()


def _feed(
    child: Child, waiting: deque[ComparedRun], messages: "queue.SimpleQueue[tuple[ComparedRun, dict[str, Any]]]"
) -> None:
    """Give a process one run after another and pass on what it says, until none is left or it is killed."""
    while waiting:
        try:
            run = waiting.popleft()
        except IndexError:
            return
        home = run.home.model_dump(mode="json")
        try:
            names = ("method", "seed", "width", "point", "held", "bars", "judged")
            child.tell({name: getattr(run, name) for name in names} | {"home": home})
            for message in child.lines():
                messages.put((run, message))
                if message.get("done", "error" in message):
                    break
        except DiastoleError as error:
            messages.put((run, {"error": str(error)}))
            return


def main() -> None:
    """Play the runs that are sent, one after another, and say how they go."""
    parent, messages, files = Parent(), queue.SimpleQueue[dict[str, Any]](), Files(Path(sys.argv[1]))
    track = sys.argv[2:]
    parent.end_with_it(messages)
    while True:
        fields = messages.get()
        run = ComparedRun(**fields | {"home": Simulation.parse(fields["home"], "a run")})
        try:
            play(run, files, lambda it: parent.say({name: getattr(it, name) for name in SAID}), track)
        except DiastoleError as error:
            parent.say({"error": str(error)})


if __name__ == "__main__":
    main()
