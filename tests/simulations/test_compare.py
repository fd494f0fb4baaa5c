"""Methods side by side: what is the same for all of them, and what goes on after an interruption."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from waiting import until

from diastole.cli import compare_tables
from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.errors import ExperimentError
from diastole.models.methods.widths.width import spec_of
from diastole.server.events import Event, RoundClosed
from diastole.simulations import compare as compare_module
from diastole.simulations import compare_jobs, compared
from diastole.simulations.compare import compare, digest
from diastole.simulations.compare_jobs import JobError
from diastole.simulations.compared import ComparedRun, Standing, planned_runs
from diastole.simulations.devices import make_federation
from diastole.simulations.engines.children import Child
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

DOCUMENT: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "method": "width",
    "data": {"proxy": 40},
    "model": {"widths": [8, 8]},
    "rounds": {"count": 2},
    "proxy": {"epochs": 1},
    "methods": {"conv": {"epochs": 1, "weight_epochs": 1}},
    "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
}


def experiment(**changes: Any) -> Simulation:
    return Simulation.parse(DOCUMENT | changes, "test")


def timeless(value: Any) -> Any:
    """Return a JSON document without what no two runs share."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "seconds" not in key}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def results(found: Comparison) -> Any:
    return timeless(json.loads(json.dumps(found.as_dict())))


class Stops:
    """Watches a comparison, and stops it once at the given standing."""

    def __init__(self, name: str = "", number: int = 0) -> None:
        self.standings: list[Standing] = []
        self._when = (name, number)

    def __call__(self, standing: Standing) -> None:
        self.standings.append(standing)
        if (standing.run.name, standing.round) == self._when and not standing.done:
            raise KeyboardInterrupt

    def rounds(self, name: str) -> list[int]:
        return [standing.round for standing in self.standings if standing.run.name == name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two methods over two seeds, never disturbed."""
    return compare(experiment(), ["width", "conv"], [5, 6], tmp_path_factory.mktemp("whole"))


def test_a_run_is_that_of_simulate(whole: Comparison) -> None:
    for method, seed in (("width", 6), ("conv", 5)):
        alone = simulate(make_federation(experiment(method=method, seed=seed, recipe="none")))
        run = whole.runs[method][whole.seeds.index(seed)]
        assert (run.method, run.seed) == (method, seed)
        assert [r.scores for r in run.rounds] == [r.scores for r in alone.rounds]
        assert [r.bytes for r in run.rounds] == [r.bytes_down + r.bytes_up for r in alone.rounds]
        assert [r.macs for r in run.rounds] == [r.macs for r in alone.rounds]
        assert sum(r.macs for r in run.rounds) == sum(a.macs for a in alone.accounts.values())
        large, small = run.tiers
        assert (large.size, small.size) == (f"{method} 1", f"{method} 0.5")
        assert small.scores == alone.rounds[-1].tier_scores[f"{method} 0.5"]
        moved = [a.bytes_down + a.bytes_up for a in alone.accounts.values()]
        assert (large.bytes, small.bytes) == (moved[0], (moved[1] + moved[2]) / 2)
        assert small.memory == alone.sizes[0].cost.memory


def test_data_are_the_same_for_every_method_and_others_for_every_seed(whole: Comparison) -> None:
    seen = {seed: {runs[k].data for runs in whole.runs.values()} for k, seed in enumerate(whole.seeds)}
    assert all(len(found) == 1 for found in seen.values())
    assert seen[5] != seen[6]
    names = (*whole.methods, "fedavg", "exclusive", "smallest", "proxy", "dedicated")
    federations = [make_federation(run.simulation) for run in planned_runs(experiment(), names, [5])]
    assert {digest(federation) for federation in federations} == seen[5]


def test_the_digest_sees_every_example() -> None:
    federation = make_federation(experiment())
    before = digest(federation)
    assert digest(make_federation(experiment())) == before
    device = federation.devices["device-01"]
    first = int(device.index[0])  # type: ignore[index]
    for examples, number in ((device.held, first), (federation.run.test, 0), (federation.run.proxy.validation, 0)):  # type: ignore[union-attr]
        examples.y[number] += 1
        changed = digest(federation)
        assert changed != before
        examples.y[number] -= 1
    device.held.x[first, 0, 3, 3] += 1e-3
    assert digest(federation) != before


def test_everything_but_the_method_is_the_same_experiment() -> None:
    dumps = []
    for run in planned_runs(experiment(), ["width", "conv", "fedavg", "exclusive", "smallest", "proxy"], [5]):
        dump = run.simulation.model_dump()
        assert (dump.pop("method"), dump.pop("seed")) == (run.method, 5)
        # Options are the method's own.
        assert set(dump.pop("methods")) <= {run.method}
        dumps.append(dump)
    assert all(dump == dumps[0] for dump in dumps)


def test_a_run_whose_result_cannot_be_written_is_not_lost(
    whole: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(f"{path}: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(compared, "write_bytes", full)
        with pytest.raises(OSError, match="no space left"):
            compare(experiment(), ["width"], [5], tmp_path)
    watch = Stops()
    again = compare(experiment(), ["width"], [5], tmp_path, watch)
    assert watch.rounds("width-seed5") == [2, 2]
    assert results(again)["runs"]["width"] == results(whole)["runs"]["width"][:1]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["width-seed5.finished", "width-seed5.json"]


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_to_the_same_end(whole: Comparison, tmp_path: Path) -> None:
    first = Stops("conv-seed5", 1)
    with pytest.raises(KeyboardInterrupt):
        compare(experiment(), ["width", "conv"], [5, 6], tmp_path, first)
    assert first.rounds("width-seed5") == [0, 1, 2, 2]
    second = Stops()
    again = compare(experiment(), ["width", "conv"], [5, 6], tmp_path, second)
    assert results(again) == results(whole)
    # The finished run is not run again. The other was stopped when its first round had been written.
    assert second.rounds("width-seed5") == [2]
    assert second.rounds("conv-seed5") == [1, 2, 2]
    third = Stops()
    assert results(compare(experiment(), ["width", "conv"], [5, 6], tmp_path, third)) == results(whole)
    assert all(standing.done for standing in third.standings)
    assert [path.name for path in (tmp_path / "runs").iterdir() if "checkpoint" in path.name] == []


@pytest.mark.slow
def test_methods_and_seeds_may_be_added(whole: Comparison, tmp_path: Path) -> None:
    compare(experiment(), ["width"], [5], tmp_path)
    # Another method's options leave this one's run what it is.
    options = experiment(methods={"conv": {"epochs": 1, "weight_epochs": 1}})
    watch = Stops()
    found = compare(options, ["conv", "width"], [6, 5], tmp_path, watch)
    assert watch.rounds("width-seed5") == [2]
    assert results(found)["runs"]["width"][::-1] == results(whole)["runs"]["width"]


def test_another_experiment_is_refused_until_asked_to_start_afresh(tmp_path: Path) -> None:
    compare(experiment(), ["width"], [5], tmp_path)
    other = experiment(training={"learning_rate": 0.01})
    with pytest.raises(
        ExperimentError, match=r"json: the run there was of another experiment; start afresh \(--fresh\)"
    ):
        compare(other, ["width"], [5], tmp_path)
    watch = Stops()
    compare(other, ["width"], [5], tmp_path, watch, fresh=True)
    assert watch.rounds("width-seed5") == [0, 1, 2, 2]


@pytest.mark.slow
def test_an_unfinished_run_of_another_experiment_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(experiment(), ["conv"], [5], tmp_path, Stops("conv-seed5", 2))
    watch = Stops()
    with pytest.raises(ExperimentError, match=r"conv-seed5\.checkpoint: the unfinished run there was of another"):
        compare(experiment(rounds={"count": 2, "quorum": 1.0}), ["width", "conv"], [5], tmp_path, watch)
    assert watch.standings == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"label": 1}', "nonsense"])
def test_a_result_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "width-seed5.json").write_text(text)
    with pytest.raises(ExperimentError, match=r"width-seed5\.json") as caught:
        compare(experiment(), ["width"], [5], tmp_path)
    assert "\n" not in str(caught.value)


def test_data_that_changed_in_between_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(experiment(), ["width"], [5], tmp_path)
    monkeypatch.setattr(compare_module, "digest", lambda federation: "other")
    with pytest.raises(ExperimentError, match="width-seed5 and fedavg-seed5 had different data"):
        compare(experiment(), ["width", "fedavg"], [5], tmp_path)


@pytest.mark.parametrize(
    ("methods", "seeds", "changes", "message"),
    [
        (["width", "magic"], [5], {}, "unknown method 'magic'; known: diastole"),
        ([], [5], {}, "at least one method and one seed"),
        (["width"], [], {}, "at least one method and one seed"),
        (["width", "conv"], [5], {"data": {"proxy": 0}}, "method conv: data.proxy must be at least 2, not 0"),
        (["width", "conv"], [5], {"data": {"proxy_labels": False}, "proxy": {}}, "method conv: needs labels"),
        (["width"], [5], {"engine": "processes"}, "engine processes takes every core for one run"),
        (["width", "smallest"], [5], {"tiers": {"a": {"devices": 1, "width": 0.01}}}, "width 0.01 leaves less than"),
        (["width"], [5], {"model": {"initial": "nowhere.safetensors"}}, "nowhere.safetensors: no such file"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_run(
    methods: list[str], seeds: list[int], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    watch = Stops()
    with pytest.raises(Exception, match=message) as caught:
        compare(experiment(**changes), methods, seeds, tmp_path, watch, jobs=2)
    assert getattr(caught.value, "exit_code", None) == 2
    assert "\n" not in str(caught.value)
    assert watch.standings == []


@pytest.mark.slow
def test_processes_give_the_same_results(whole: Comparison, tmp_path: Path) -> None:
    watch = Stops()
    found = compare(experiment(), ["width", "conv"], [5, 6], tmp_path, watch, jobs=2)
    assert results(found) == results(whole)
    assert {standing.run.name for standing in watch.standings if standing.done} == {
        f"{method}-seed{seed}" for method in ("width", "conv") for seed in (5, 6)
    }
    assert watch.rounds("conv-seed6") == [0, 1, 2, 2]


@pytest.mark.slow
def test_a_run_that_fails_in_a_process_is_one_line_and_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []
    original = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(original(*arguments, **options))
        return started[-1]

    # Nobody stays long enough to be waited for.
    hasty = experiment(population={"preset": "phones", "patience": 0.0}, rounds={"count": 400, "patience": 0.0})
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(JobError, match=r"^width-seed\d: \d+ of \d+ devices"):
        compare(hasty, ["width"], [5, 6, 7], tmp_path, jobs=2)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_a_process_that_ends_before_it_has_a_run_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_jobs, "Child", lambda module, folder: Child("diastole.proto.address"))
    with pytest.raises(JobError, match=r"width-seed\d: process \d+ \(diastole.proto.address\) ended with code 0"):
        compare(experiment(), ["width"], [5, 6], tmp_path, jobs=2)


@pytest.mark.slow
def test_a_killed_comparison_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    path, out = tmp_path / "small.toml", tmp_path / "out"
    path.write_text(
        "name = 'small'\nseed = 5\n[data]\nproxy = 40\n[model]\nwidths = [8, 8]\n[rounds]\ncount = 12\n"
        "[tiers]\nlarge = { devices = 1, width = 1.0 }\nsmall = { devices = 2, width = 0.5 }\n"
    )
    command = [sys.executable, "-m", "diastole.cli.main", "compare", str(path), "--methods", "width,fedavg"]
    command += ["--seeds", "1", "--jobs", "2", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until(lambda: list(out.glob("runs/*.checkpoint")), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    # Standard error is the workers' too, and ends with the last of them.
    process.communicate(timeout=120)
    assert list(out.glob("runs/*.checkpoint"))
    watch, settings = Stops(), Simulation.load(path)
    resumed = compare(settings, ["width", "fedavg"], [5], out, watch)
    assert any(watch.rounds(f"{method}-seed5")[0] > 0 for method in ("width", "fedavg"))
    assert results(resumed) == results(compare(settings, ["width", "fedavg"], [5], tmp_path / "whole"))
    assert [len(run.rounds) for runs in resumed.runs.values() for run in runs] == [12] * 2


# Baselines


def test_smallest_is_plain_federated_learning_of_the_smallest_size(tmp_path: Path) -> None:
    found = compare(experiment(), ["smallest"], [5], tmp_path)
    (run,) = found.runs["smallest"]
    # The same as a fleet of small devices alone.
    tiers = {"large": {"devices": 1, "width": 0.5}, "small": {"devices": 2, "width": 0.5}}
    alone = simulate(make_federation(experiment(method="fedavg", tiers=tiers)))
    assert [r.scores for r in run.rounds] == [r.scores for r in alone.rounds]
    assert [(t.size, t.scores) for t in run.tiers] == [("width 0.5", alone.scores)] * 2
    assert alone.sizes[0].spec == spec_of(0.5)
    assert {name: t.shape for name, t in alone.state.items()}["stages.0.0.weight"] == (4, 1, 3, 3)


@pytest.mark.slow
def test_dedicated_federations_train_every_device_at_each_width(tmp_path: Path) -> None:
    found = compare(experiment(), ["dedicated", "fedavg", "smallest"], [5], tmp_path)
    (dedicated,), (fedavg,), (smallest,) = (found.runs[name] for name in ("dedicated", "fedavg", "smallest"))
    assert dedicated.scores == fedavg.scores
    assert [t.scores for t in dedicated.tiers] == [fedavg.scores, smallest.scores]
    assert [t.size for t in dedicated.tiers] == ["width 1", "width 0.5"]
    # Each tier's costs are those of its own federation; the whole is all of them.
    assert [t.memory for t in dedicated.tiers] == [fedavg.tiers[0].memory, smallest.tiers[1].memory]
    for k in range(2):
        assert dedicated.rounds[k].bytes == fedavg.rounds[k].bytes + smallest.rounds[k].bytes
        assert dedicated.rounds[k].macs == fedavg.rounds[k].macs + smallest.rounds[k].macs
        assert dedicated.rounds[k].tiers["small"] == smallest.rounds[k].scores
    assert sorted(path.stem for path in (tmp_path / "runs").glob("dedicated*.json")) == [
        "dedicated-0.5-seed5",
        "dedicated-1-seed5",
    ]


@pytest.mark.slow
def test_a_population_has_virtual_time_and_its_classes_as_tiers(tmp_path: Path) -> None:
    field = experiment(
        population={"preset": "memory-limited"},
        tiers={"large": {"devices": 4, "width": 1.0}, "small": {"devices": 8, "width": 0.5}},
    )
    found = compare(field, ["width", "exclusive", "dedicated", "proxy"], [5], tmp_path, target=0.0)
    summary = found.summary()
    assert summary["width"]["virtual_seconds"].mean == summary["width"]["seconds_to_target"].mean * 2  # type: ignore[operator]
    assert summary["proxy"]["virtual_seconds"].mean is None
    # A class with 0.3 of the memory cannot train half of the width.
    (width,), (dedicated,), (exclusive,) = (found.runs[name] for name in ("width", "dedicated", "exclusive"))
    sizes = {tier.tier: tier.size for tier in width.tiers}
    assert sizes["phone-high"] == "width 1"
    assert "width 0.5" in sizes.values()
    assert {tier.tier: tier.size for tier in dedicated.tiers} == sizes
    assert {t.tier for t in exclusive.tiers if t.size} == {t for t, size in sizes.items() if size == "width 1"}
    assert exclusive.worst is None


def test_a_population_of_ones_own_has_virtual_time_too(tmp_path: Path) -> None:
    kind = {"name": "box", "share": 1, "macs_per_second": 1e8, "memory": 1, "down": 1e6, "up": 1e6, "watts": 1}
    field = experiment(population={"classes": [kind | {"radio_watts": 1}]}, rounds={"count": 1})
    found = compare(field, ["width"], [5], tmp_path)
    assert found.virtual
    assert found.summary()["width"]["virtual_seconds"].mean == found.runs["width"][0].rounds[0].seconds
    assert any("virtual time" in "".join(grid.header) for grid in compare_tables.grids(found))
    assert "of its own classes" in compare_tables.markdown(found)


def test_the_deadline_is_the_same_for_every_method() -> None:
    field = experiment(population={"preset": "mixed", "deadline": 2.0})
    found = {
        make_federation(field.changed(method=name)).virtual_rounds().deadline
        for name in ("width", "conv", "fedavg", "smallest")
    }
    assert len(found) == 1


@pytest.mark.slow
def test_a_baseline_below_the_full_width_is_its_own_global_model() -> None:
    tiers = {"large": {"devices": 1, "width": 0.5}, "small": {"devices": 1, "width": 0.25}}
    for method, channels in (("fedavg", 8), ("exclusive", 8), ("smallest", 4), ("proxy", 16)):
        settings = experiment(method=method, tiers=tiers, model={"widths": [16, 16]}, rounds={"count": 1})
        events: list[Event] = []
        outcome = simulate(make_federation(settings), (events.append,))
        assert outcome.state["stages.0.0.weight"].shape[0] == channels
        closed = [event for event in events if isinstance(event, RoundClosed)]
        assert method == "proxy" or list(closed[0].tier_scores.values()) == [outcome.scores]


# Proxy sets without labels


def test_a_proxy_set_without_labels_has_the_same_examples() -> None:
    bare = make_federation(experiment(data={"proxy": 40, "proxy_labels": False}, proxy={})).run.proxy
    full = make_federation(experiment(data={"proxy": 40}, proxy={})).run.proxy
    assert bare is not None
    assert full is not None
    assert not bare.labelled
    assert full.labelled
    for one, other in ((bare.training, full.training), (bare.validation, full.validation)):
        assert torch.equal(one.x, other.x)
        assert one.y.eq(-1).all()


@pytest.mark.slow
def test_a_method_that_needs_no_proxy_set_runs_the_same_without_labels(tmp_path: Path) -> None:
    runs = [
        simulate(make_federation(experiment(data={"proxy": 40, "proxy_labels": labels}, proxy={})))
        for labels in (True, False)
    ]
    assert all(torch.equal(runs[0].state[name], runs[1].state[name]) for name in runs[0].state)


def test_a_run_has_a_name_of_its_own() -> None:
    found = planned_runs(experiment(), ["width", "fedavg", "dedicated"], [5, 6])
    assert len({run.name for run in found}) == len(found) == 8
    assert [run.seed for run in found] == [5] * 4 + [6] * 4
    assert isinstance(found[0], ComparedRun)
