"""What a log of a command holds: time, level, run, round and device, and nothing that its text could do."""

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from diastole.cli import logs
from diastole.cli.logs import FILES, LONGEST, LogFormat, LogLevel, logging_to
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.proto.about import about
from diastole.server.events import RoundClosed, RunStarted, UpdateQuarantined
from diastole.server.observe.logs import Logged
from diastole.server.observe.recent import KEPT, Recent

Run = Callable[..., tuple[int, str, str]]
LOG = logging.getLogger("diastole.test")
EVIL = "[red]\x1b[2J\nERROR   all is lost"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_for_people_has_its_time_level_and_what_it_is_about(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(
        file=out, markup=False, emoji=False, highlight=False, width=40, force_terminal=terminal, color_system=None
    )
    with logging_to(console), about("a1b2", 3, "pi-7"):
        LOG.warning("%s said: %s", "pi-7", EVIL)
        LOG.debug("nobody asked")
    with about(run="later"):
        LOG.warning("the log is closed")
    (line,) = out.getvalue().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING pi-7 said: \[red\]\?\[2J\?ERROR", line)
    assert line.endswith("  (run=a1b2 round=3 device=pi-7)")


def test_every_json_line_has_run_round_and_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "logs" / "log.json"
    with logging_to(None, LogFormat.JSON, LogLevel.INFO, path):
        LOG.info("plain")
        with about("a1b2"):
            logged = Logged("c3d4")
            logged(RunStarted("width", 2, tuple(map(str, range(20_000)))))
            logged(UpdateQuarantined(1, "pi-7", EVIL))
            logged(RoundClosed(1, 5, "", {"accuracy": 0.5}, {}, 10, 20, 3.0))
            try:
                raise ValueError(EVIL)
            except ValueError:
                LOG.exception("x" * 2 * LONGEST)
        logging.getLogger("grpc._server").warning("of gRPC")
        logging.getLogger("grpc._server").info("noise")
    lines = read(path)
    assert capsys.readouterr().out == path.read_text()
    assert all({"time", "level", "logger", "message", "run", "round", "device"} <= line.keys() for line in lines)
    plain, started, bad, closed, failed, other = lines
    assert (plain["run"], plain["round"], plain["device"]) == (None, None, None)
    assert (started["event"], started["run"], started["fields"]["method"]) == ("run_started", "c3d4", "width")
    assert "devices" not in started["fields"], "20,000 names are no part of a line"
    assert (bad["run"], bad["round"], bad["device"], bad["level"]) == ("c3d4", 1, "pi-7", "warning")
    assert "\n" not in bad["message"]
    assert (closed["event"], closed["fields"]["bytes_up"]) == ("round_closed", 20)
    assert (len(failed["message"]), failed["run"]) == (LONGEST, "a1b2")
    assert any("ValueError" in line for line in failed["exception"])
    assert (other["logger"], other["message"]) == ("grpc._server", "of gRPC")


def test_a_log_file_is_bounded_and_a_full_disk_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 1000)
    with logging_to(None, file=tmp_path / "log"):
        for number in range(1000):
            LOG.info("line %d", number)
    files = sorted(tmp_path.iterdir())
    assert len(files) == FILES + 1
    assert all(file.stat().st_size <= 1000 for file in files)
    assert "line 999" in (tmp_path / "log").read_text()
    if sys.platform == "linux":
        with logging_to(None, file=Path("/dev/full")):
            LOG.info("nobody reads this there")
        assert "Traceback" not in capsys.readouterr().err


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(None, level=LogLevel.ERROR):
        LOG.warning("not this")
        LOG.error("but this")
    assert capsys.readouterr().out.count("\n") == 1


def test_an_operator_reads_the_log_and_follows_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, follow = threading.Event(), Recent.follow

    def followed(recent: Recent, after: int, context: Any, *, wait: bool) -> Iterator[Any]:
        for line in follow(recent, after, context, wait=wait):
            yield line
            # Whoever asks for the next has sent this one.
            if wait:
                heard.set()

    monkeypatch.setattr(Recent, "follow", followed)
    document = {"data": {"proxy": 40}, "tiers": {"small": {"devices": 1, "width": 0.25}}}
    made = make_run(Experiment.parse(document, "test"))
    with (
        logging_to(Console(file=io.StringIO()), level=LogLevel.DEBUG),
        Serving(made, "127.0.0.1:0", tmp_path, admin="127.0.0.1:0", figures=()) as serving,
    ):
        call = "logs", "--address", f"127.0.0.1:{serving.admin_port}", "--token-file", tmp_path / "admin.token"
        with about(serving.run_id, 3, "pi-7"):
            LOG.warning("pi-7 said: %s", EVIL)
            LOG.debug("quietly")
        code, out, err = run("admin", *call)
        assert (code, err) == (0, "")
        line = next(line for line in out.splitlines() if "pi-7 said" in line)
        assert line.endswith(f"?ERROR   all is lost  (run={serving.run_id} round=3 device=pi-7)")
        assert "quietly" not in out
        code, out, err = run("admin", *call, "--device", "pi-7", "--level", "debug", "--json")
        lines = [json.loads(line) for line in out.splitlines()]
        assert [(line["level"], line["message"]) for line in lines][1] == ("debug", "quietly")
        assert len(lines) == 2
        assert run("admin", *call, "--run", "another")[1] == ""
        # Whoever follows hears what comes, until the coordinator ends.
        ended = threading.Thread(target=lambda: heard.wait(60) and serving.stop(now=True))
        ended.start()
        code, out, _ = run("admin", *call, "--follow")
        assert "pi-7 said" in out
        ended.join()
    root = logging.getLogger("diastole")
    assert not [handler for handler in root.handlers if isinstance(handler, Recent)]


def test_few_lines_are_kept() -> None:
    class Context:
        def add_callback(self, call: Any) -> None:
            pass

        def is_active(self) -> bool:
            return True

    with logging_to(Console(file=io.StringIO())), closing(Recent()) as recent:
        for number in range(KEPT + 10):
            LOG.info("line %d", number)
        lines = list(recent.follow(KEPT + 7, Context(), wait=False))  # type: ignore[arg-type]
        assert [line.message for line in lines] == [f"line {KEPT + each}" for each in (7, 8, 9)]
        assert len(list(recent.follow(0, Context(), wait=False))) == KEPT  # type: ignore[arg-type]
