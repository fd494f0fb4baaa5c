"""`diastole tune`, and `diastole compare --tuned`, as a person or a program meets them."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuning import TEXT
from waiting import until

from diastole.cli.tuning import planned, sweeping
from diastole.experiments.errors import ExperimentError
from diastole.experiments.sweep.ranges import SPACES, ranges
from diastole.experiments.sweep.space import Range
from diastole.simulations.sweep import planned_count, sweep

Run = Callable[..., tuple[int, str, str]]
RATE = "training.learning_rate"


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return path


def tuned(run: Run, path: Path, out: Path, *more: object) -> Any:
    code, text, err = run("tune", path, "--out", out, "--json", *more)
    assert code == 0, err
    assert json.loads((out / "tuned.json").read_text()) == json.loads(text)
    return json.loads(text)


def test_what_is_found_is_compared_at(run: Run, path: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "tuned", tmp_path / "table"
    first = tuned(run, path, out, "--method", "exclusive", "--keys", RATE, "--trials", 2)
    entry = first["methods"]["exclusive"]
    assert (entry["trials"], entry["seeds"], entry["rounds"], entry["metric"]) == (2, [5], 1, "accuracy")
    assert entry["selected_on"] == "10% of the training examples, held out"
    assert entry["command"].startswith("diastole tune ")
    assert entry["command"].endswith(f"--method exclusive --keys {RATE} --trials 2")
    scores = {trial["score"]: trial["values"] for trial in entry["log"]}
    assert (entry["score"], entry["values"]) == (max(scores), scores[max(scores)])
    low, high = (entry["parameters"][RATE][end] for end in ("low", "high"))
    assert all(low <= trial["values"][RATE] <= high for trial in entry["log"])
    # Another method joins it, with other keys.
    both = tuned(run, path, out, "--method", "heterofl", "--grid", "training.epochs=1,2", "--trials", 1)
    assert both["methods"]["exclusive"] == entry
    assert list(both["methods"]) == ["exclusive", "width"]
    values = {method: of["values"] for method, of in both["methods"].items()}
    assert set(values["width"]) == {"training.epochs"}
    # More rounds are as good; the methods are those that were tuned.
    more = ("--seeds", 1, "--set", "rounds.count=2", "--out", table, "--json")
    code, text, err = run("compare", path, "--tuned", out, *more)
    assert code == 0, err
    document = json.loads(text)
    assert document["experiment"]["values"] == values
    assert document["methods"] == ["exclusive", "width"]
    assert document["tuned"]["path"] == str(out)
    assert document["tuned"]["methods"]["exclusive"] == {k: v for k, v in entry.items() if k != "log"}
    tables = (table / "comparison.md").read_text()
    rate = f"{values['exclusive'][RATE]:.4g}"
    assert f"| exclusive | {rate} | - |" in tables
    assert f"exclusive: by accuracy on {entry['selected_on']}, never on the test set; the best of 2 trials" in tables
    assert f"`{entry['command']}`" in tables
    assert "Devices' learning rate 0.05, from the experiment where the values of a method say no other." in tables
    for arguments, message in (
        (("--set", "tiers.small.width=0.25"), "was tuned for another experiment, of other tiers; tune again"),
        (("--set", "model.widths=[8,16]"), "was tuned for another experiment, of other model"),
        (("--set", "training.batch_size=8"), "was tuned for another experiment, of other training"),
        (("--set", "data.proxy=10", "--set", "partition.alpha=1"), "of other data, partition"),
        (("--set", "data.test=0.5"), "was tuned on other data; tune again"),
        (("--methods", "fedavg,width"), "has no values of fedavg; diastole tune --method fedavg finds them"),
        (("--grid", f"{RATE}=0.1"), "--tuned and --grid: values come from one of them"),
    ):
        code, text, err = run("compare", path, "--tuned", out / "tuned.json", *arguments, "--out", tmp_path / "none")
        assert (code, text, err.count("\n")) == (2, "", 1), err
        assert message in err
    assert not (tmp_path / "none").exists()
    code, text, err = run("tune", path, "--method", "width", "--keys", RATE, "--out", out, "--set", "limits=[]")
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert "tuned.json: was tuned for another experiment, of other limits" in err


def test_other_data_under_the_same_name_are_refused(run: Run, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    tuned(run, path, out, "--method", "exclusive", "--grid", f"{RATE}=0.1,0.05", "--trials", 1)
    document = json.loads((out / "tuned.json").read_text())
    (out / "tuned.json").write_text(json.dumps(document | {"data": "0" * 64}))
    code, text, err = run("compare", path, "--tuned", out)
    assert (code, text) == (2, "")
    assert "was tuned on other data" in err
    document["methods"]["exclusive"]["values"] = {"data.path": "/etc"}
    (out / "tuned.json").write_text(json.dumps(document))
    code, text, err = run("compare", path, "--tuned", out)
    assert (code, text) == (2, "")
    assert "exclusive: data.path says what the task is, and cannot be tuned" in err


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"experiment": 1}', "nonsense", "[" * 100_000])
def test_a_file_that_tune_has_not_left_is_one_line(text: str | None, run: Run, path: Path, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "tuned.json").write_text(text)
    code, out, err = run("compare", path, "--tuned", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "tuned.json: no such file" in err if text is None else "tuned.json: not what tune has left" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to tune: --keys, --range, --grid or [sweep] parameters"),
        (("--keys", "training.learning_rat"), "training.learning_rat: no range is known for it; give --range"),
        (("--range", "training.learning_rat=0.1..0.2"), "training.learning_rat: no such key"),
        (("--range", f"{RATE}=0.1"), "a range reads table.key=low..high"),
        (("--range", f"{RATE}=0.2..0.1"), "the lower end, 0.2, must be below the higher one, 0.1"),
        (("--keys", RATE, "--grid", f"{RATE}=0.1,0.2"), f"{RATE}: is named twice"),
        (("--keys", RATE, "--validation", "test"), "--validation 'test': a share below 1, such as 0.1"),
        (("--range", "tiers.small.width=0.1..0.5"), "tiers.small.width says what the task is"),
        (("--keys", RATE, "--metric", "speed"), "sweep.metric: 'speed' is no figure of a run"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...], message: str, run: Run, path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    code, text, err = run("tune", path, "--method", "width", *arguments, "--out", out)
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(out.glob("**/*.json"))


def test_ranges_that_are_known_and_given(path: Path) -> None:
    found = ranges([f"{RATE}=0.001..0.1", "training.epochs=1..4", "server.beta1=0..0.9"])
    assert found == {
        RATE: Range(low=0.001, high=0.1, log=True),
        "training.epochs": Range(low=1, high=4),
        "server.beta1": Range(low=0, high=0.9),
    }
    settings = sweeping(path, [], ["width"], planned(RATE, [], []), {"trials": 3, "prune": None})
    plan = settings.sweep
    assert plan is not None
    assert plan.parameters == {RATE: SPACES[RATE]}
    assert (plan.trials, plan.prune, plan.validation) == (3, 1, 0.1)
    adam = sweeping(path, ["training.optimiser=adam"], ["width"], planned(RATE, [], []), {"validation": "proxy"})
    assert adam.sweep is not None
    assert adam.sweep.validation == "proxy"
    assert adam.sweep.parameters[RATE].high < SPACES[RATE].high  # type: ignore[union-attr]


def test_the_file_says_what_the_command_does_not(path: Path) -> None:
    path.write_text(
        f'{TEXT}[sweep]\ntrials = 7\nseeds = 2\nmetric = "loss"\nparameters = {{ "{RATE}" = [0.1, 0.2] }}\n'
    )
    plan = sweeping(path, [], ["width"], {}, {"seeds": 3}).sweep
    assert plan is not None
    assert (plan.trials, plan.seeds, plan.metric, plan.parameters) == (7, 3, "loss", {RATE: (0.1, 0.2)})
    with pytest.raises(ExperimentError, match="nothing to tune"):
        sweeping(path, ["sweep.parameters={}"], ["width"], {}, {})


@pytest.mark.slow
def test_a_killed_search_goes_on_to_what_it_would_have_found(run: Run, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    arguments = ["--method", "exclusive", "--keys", RATE, "--trials", "6", "--set", "rounds.count=3", "--prune", "1"]
    command = [sys.executable, "-m", "diastole.cli.main", "tune", str(path), *arguments, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until(lambda: list(out.glob("runs/*.json")), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate(timeout=60)
    assert not (out / "tuned.json").exists()
    found = tuned(run, path, out, *arguments)
    settings = sweeping(path, ["rounds.count=3"], ["exclusive"], planned(RATE, [], []), {"trials": 6, "prune": 1})
    whole = sweep(settings, ["exclusive"], tmp_path / "whole")
    log = [
        {"number": it.number, "values": dict(it.values), "score": it.score.mean, "pruned": it.pruned}
        for it in whole.trials["exclusive"]
    ]
    assert found["methods"]["exclusive"]["log"] == log


def test_of_grids_alone_every_combination_is_tried(path: Path) -> None:
    lists = planned("", [], [f"{RATE}=0.1,0.05", "training.epochs=1,2"])
    asked: dict[str, int | None] = dict.fromkeys(("trials", "seeds", "metric", "validation", "prune"))
    assert sweeping(path, [], ["width"], lists, asked).sweep.trials is None
    assert sweeping(path, [], ["width"], lists, asked | {"trials": 3}).sweep.trials == 3
    assert planned_count(sweeping(path, [], ["width"], lists, asked), ["width"]) == 4
    ranged = planned("training.momentum", [], [f"{RATE}=0.1,0.05"])
    assert sweeping(path, [], ["width"], ranged, asked).sweep.trials == 20
