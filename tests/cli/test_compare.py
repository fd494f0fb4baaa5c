"""`diastole compare` and `diastole methods` as a person or a program meets them."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from waiting import until

from diastole.cli.comparing import View
from diastole.cli.methods import BEGIN, END, blocks
from diastole.cli.units import BYTES, COUNT, SECONDS, SHARE, Unit
from diastole.models.methods.registry import METHODS
from diastole.simulations.compared import Standing, planned_runs
from diastole.simulations.methods import Fit, Line
from diastole.simulations.simulation import Simulation

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]
TEXT = """
name = "small"
seed = 5
method = "conv"
[data]
proxy = 40
[model]
widths = [8, 8]
[rounds]
count = {rounds}
[tiers]
large = {{ devices = 1, width = 1.0 }}
small = {{ devices = 2, width = 0.5 }}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TEXT.format(rounds=2))
    return path


def test_json_is_one_document_and_nothing_else(run: Run, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("compare", path, "--methods", "width,exclusive", "--seeds", 2, "--out", out, "--json")
    code, text, err = run(*arguments, "--target", "0.1")
    assert code == 0
    assert err.count("runs done") == 4
    document = json.loads(text)
    assert document == json.loads((out / "comparison.json").read_text())
    assert (document["methods"], document["seeds"], document["target"]) == (["width", "exclusive"], [5, 6], 0.1)
    assert "method" not in document["experiment"]
    assert document["experiment"]["rounds"]["count"] == 2
    for method in ("width", "exclusive"):
        assert [run["seed"] for run in document["runs"][method]] == [5, 6]
        scores = [run["rounds"][-1]["accuracy"] for run in document["runs"][method]]
        assert document["summary"][method]["accuracy"]["mean"] == pytest.approx(sum(scores) / 2)
    assert document["summary"]["exclusive"]["worst_tier_accuracy"] == {"mean": None, "deviation": None, "count": 0}
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    code, again, err = run(*arguments, "--target", "0.1")
    assert (code, again) == (0, text)
    assert err.count("of an earlier call") == 4


def test_without_matplotlib_there_is_all_but_the_picture(
    run: Run, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run("compare", path, "--methods", "width", "--seeds", 1, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("the report will have no pictures: matplotlib is not installed; pip install ")
    assert [name for name in ("json", "md", "png") if (tmp_path / f"comparison.{name}").exists()] == ["json", "md"]


def test_tables_for_people_and_for_documents(run: Run, path: Path, tmp_path: Path) -> None:
    code, out, err = run("compare", path, "--methods", " width, exclusive ,width", "--seeds", 1, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "2/2 runs done: exclusive-seed5, accuracy" in out
    for word in (
        "Accuracy on the test set after 2 rounds, seed 5",
        "worst tier",
        "peak memory, small",
        "the server's part",
    ):
        assert word in out
    (row,) = [line for line in out.splitlines() if "exclusive" in line and "%" in line and "│" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    # Small devices are not served by it.
    assert [cells[0], *cells[3:]] == ["exclusive", "-", "-", "-", "1"]
    text = (tmp_path / "comparison.md").read_text()
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        lines = table.strip().splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert [line.split("|")[1].strip() for line in lines] == ["method", "---", "width", "exclusive"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "width,magic"), "unknown method 'magic'; known: diastole, width, conv"),
        (("--methods", "magic"), "'magic'"),
        (("--methods", "magic"), "smallest, proxy, dedicated"),
        (("--methods", ","), "at least one method and one seed"),
        (("--methods", "width,conv", "--set", "data.proxy=0"), "method conv: data.proxy must be at least 2, not 0"),
        (("--methods", "width", "--set", "rounds.cuont=3"), "rounds.cuont: no such key; accepted: count, "),
        (("--methods", "width", "--track", "papyrus"), "unknown tracker 'papyrus'; known: csv"),
        (("--methods", "width", "--figures", "jpg"), "figures: 'jpg' is not drawn; accepted: png, pdf, svg"),
        (("--methods", "width", "--data", "none.npz"), "none.npz: no such file or folder"),
        (("--methods", "width,proxy"), "method proxy: proxy.epochs and data.proxy must both be at least 1"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: Run, path: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    code, text, err = run("compare", path, *arguments, "--out", out)
    assert (code, text) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.slow
def test_another_experiment_in_the_same_folder_is_one_line(run: Run, path: Path, tmp_path: Path) -> None:
    arguments = ("compare", path, "--methods", "exclusive", "--seeds", 1, "--out", tmp_path / "out", "--json")
    assert run(*arguments)[0] == 0
    code, text, err = run(*arguments, "--set", "rounds.count=1")
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert "the run there was of another experiment; start afresh (--fresh) or choose another folder" in err
    code, text, _ = run(*arguments, "--set", "rounds.count=1", "--fresh")
    assert code == 0
    assert len(json.loads(text)["runs"]["exclusive"][0]["rounds"]) == 1


def test_ctrl_c_stops_and_says_so(run: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "long.toml", tmp_path / "out"
    path.write_text(TEXT.format(rounds=3000))
    waited = threading.Event()

    def press() -> None:
        while not list(out.glob("runs/*.checkpoint")):
            waited.wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    code, text, err = run("compare", path, "--methods", "width,fedavg", "--seeds", 1, "--out", out)
    assert (code, err) == (130, "")
    assert text.splitlines()[-1] == "Stopped; the same command goes on from here."
    assert not (out / "comparison.json").exists()


@pytest.mark.slow
def test_ctrl_c_stops_the_jobs_too(tmp_path: Path) -> None:
    path, out = tmp_path / "long.toml", tmp_path / "out"
    path.write_text(TEXT.format(rounds=3000))
    arguments = ["compare", str(path), "--methods", "width,fedavg", "--seeds", "1", "--jobs", "2", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "diastole.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The background jobs of a script ignore the signal; if these tests are one, what they start would too.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until(lambda: list(out.glob("runs/*.checkpoint")), process, 300)
        process.send_signal(signal.SIGINT)
        text, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "")
    assert text.splitlines()[-1] == "Stopped; the same command goes on from here."
    assert not (out / "comparison.json").exists()


def test_bars_count_the_rounds_of_this_call_and_of_earlier_ones() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=120, highlight=False)
    first, second = planned_runs(Simulation(seed=5), ["width", "fedavg"], [5])
    with View(console, 2, 20) as view:
        bars: Any = view._bars
        view(Standing(first, 10, 0.5, done=True))
        view(Standing(second, 4))
        assert [(task.description, task.completed, task.total) for task in bars.tasks] == [
            ("rounds of all runs", 14, 20),
            (second.name, 4, 10),
        ]
        # What was done before says nothing of the time to go.
        assert bars.tasks[0].time_remaining is None
        for number in (5, 6, 7):
            view(Standing(second, number, 0.25))
        assert bars.tasks[0].completed == 17
        assert bars.tasks[0].time_remaining is not None
        view(Standing(second, 10, 0.75, done=True))
        assert [task.completed for task in bars.tasks] == [20]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"1/2 runs done: {first.name}, accuracy 50.0%, of an earlier call" in shown
    assert f"2/2 runs done: {second.name}, accuracy 75.0%\n" in shown


@pytest.mark.parametrize(
    ("unit", "mean", "deviation", "text"),
    [
        (SHARE, 0.9284, 0.0151, "92.8 ± 1.5%"),
        (SHARE, 0.5, None, "50.0%"),
        (BYTES, 213_400.0, None, "213 kB"),
        (BYTES, 1_710_000.0, 90_000.0, "1.71 ± 0.09 MB"),
        (BYTES, 0.0, None, "0 B"),
        (COUNT, 460e6, 131e6, "460 ± 131 M"),
        (COUNT, 3.0, None, "3"),
        (SECONDS, 7200.0, 60.0, "2.00 ± 0.02 h"),
        (SECONDS, 12.34, None, "12.3 s"),
    ],
)
def test_figures_are_written_in_the_unit_of_the_mean(
    unit: Unit, mean: float, deviation: float | None, text: str
) -> None:
    assert unit.write(mean, deviation) == text


# diastole methods


def test_the_table_of_methods_is_up_to_date(run: Run) -> None:
    table = run("methods", "--markdown")[1]
    text = (ROOT / "docs" / "methods.md").read_text()
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table.strip(), "run `make docs`"


def test_every_method_has_a_row_with_its_costs(run: Run, path: Path) -> None:
    code, out, _ = run("methods", path, "--json")
    assert code == 0
    rows = {row["method"]: row for row in json.loads(out)}
    methods = {name: row for name, row in METHODS.items() if not row.baseline}
    assert list(rows) == list(methods)
    for name, method in methods.items():
        assert (rows[name]["source"], rows[name]["idea"]) == (method.source, method.idea)
        assert rows[name]["note"] or set(rows[name]["sizes"]) == {"large", "small"}
    large, small = rows["width"]["sizes"]["large"], rows["width"]["sizes"]["small"]
    assert (large["label"], small["label"]) == ("width 1", "width 0.5")
    for key in ("parameters", "training_macs", "bytes", "memory"):
        assert large[key] > small[key] > 0


def test_methods_are_read_at_80_columns() -> None:
    sizes = {
        "large": Fit("width stages 2, 3", 6138, 243456, 24552, 627132),
        "tiny": None,
    }
    words = "the first channels of every layer, trained at every narrower width too, and a little more than that"
    recipe = {"training.clip": 1.0, "training.schedule": "step:0.375,0.625"}
    lines = [
        Line("width", "HeteroFL", words, "a proxy set", recipe, sizes),
        Line("conv", "FedConv", "none", "", {}, {}),
    ]
    text = blocks(lines, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[3:] == [
        "width: HeteroFL",
        "    the first channels of every layer, trained at every narrower width too, and",
        "    a little more than that; needs a proxy set",
        "    recipe: training.clip = 1.0, training.schedule = step:0.375,0.625",
        "    large  stages 2, 3   243 k  24.6 kB  627 kB",
        "    tiny   nothing fits      -        -       -",
        "",
        "conv: FedConv",
        "    none",
    ]


def test_a_method_that_cannot_be_used_here_says_why(run: Run, path: Path) -> None:
    code, out, _ = run("methods", path, "--set", "data.proxy=0", "--json")
    assert code == 0
    (conv,) = [row for row in json.loads(out) if row["method"] == "conv"]
    assert conv["sizes"] == {}
    assert "data.proxy must be at least 2, not 0" in conv["note"]
    assert "data.proxy must be at least 2, not 0" in run("methods", path, "--set", "data.proxy=0")[1]


def test_a_file_is_updated_between_its_marks(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert run("methods", "--update", page) == (0, "", "")
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "HeteroFL" in text
    run("methods", "--update", page)
    assert page.read_text() == text


def test_a_file_without_marks_and_an_override_without_a_file_are_one_line(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    for arguments, message in (
        (("--update", page), "page.md: has no lines"),
        (("--update", tmp_path / "none.md"), "none.md"),
        (("--set", "seed=1"), "give its path too"),
    ):
        code, out, err = run("methods", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert page.read_text() == "nothing\n"
