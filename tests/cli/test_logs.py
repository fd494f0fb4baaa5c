"""What a log of a command holds: time, level, run, round and device, and nothing that its text could do."""

import io
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from diastole.cli import logs
from diastole.cli.logs import FILES, LONGEST, LogFormat, LogLevel, logging_to
from diastole.proto.about import about
from diastole.server.events import RoundClosed, RunStarted, UpdateQuarantined
from diastole.server.observe.logs import Logged

LOG = logging.getLogger("diastole.test")
EVIL = "[red]\x1b[2J\nERROR   all is lost"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_people_has_its_time_level_and_what_it_is_about() -> None:
    out = io.StringIO()
    console = Console(file=out, markup=False, emoji=False, highlight=False, width=40)
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
