"""What is in the environment before torch is imported."""

import json
import os
import subprocess
import sys

import pytest

from diastole.client.environment import QUIET, prepare
from diastole.simulations.engines.children import environment


def test_what_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diastole.client.environment.quota", lambda: None)
    mine = {"GOMP_SPINCOUNT": "7"}
    prepare(mine)
    assert mine == {"GOMP_SPINCOUNT": "7", **QUIET}
    empty = dict[str, str]()
    prepare(empty)
    assert empty == {"GOMP_SPINCOUNT": "1000", **QUIET}


def test_the_command_and_workers_have_it_before_torch() -> None:
    assert environment()["GOMP_SPINCOUNT"] == os.environ.get("GOMP_SPINCOUNT", "1000")
    code = (
        "import json, os, sys; from diastole.cli import main; main.app = lambda **_: print("
        "json.dumps([os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules])); main.main()"
    )
    clean = {name: value for name, value in environment().items() if name != "GOMP_SPINCOUNT"}
    answer = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == ["1000", False]
