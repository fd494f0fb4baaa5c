"""The order of the tests, the same draws in every run of them, and the command, run in this process.

`--hypothesis-profile=explore` looks for new examples.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from diastole.client import environment

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=20)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile("repeatable")

LIGHT = ("client", "models", "proto", "server")


def pytest_configure(config: pytest.Config) -> None:
    """Keep plans, speeds and kernels that tests find beside pytest's own cache, not in the user's.

    It outlives a run: nothing is searched or compiled again for tests of the same sources.
    """
    # As the command does: gRPC would else have fork handlers, which end processes that measure, and calls of others.
    environment.prepare()
    if (cache := getattr(config, "cache", None)) is not None:
        os.environ["XDG_CACHE_HOME"] = str(cache.mkdir("home"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that start processes: at the end, two cores share the small ones evenly."""
    items.sort(key=lambda item: item.path.relative_to(Path(__file__).parent).parts[0] in LIGHT)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let a test depend on nothing that ran before: neither draws without a seed, nor what a user keeps."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
    # Here, because the process that deals the tests out needs no torch.
    import torch

    # Of the processor alone: for every card that could be there, `torch.manual_seed` keeps a traceback.
    torch.default_generator.manual_seed(0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process and return its exit code, standard output and standard error."""
    from diastole.cli.main import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diastole", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return int(code), captured.out, captured.err

    return call
