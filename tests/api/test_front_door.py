"""What `import diastole` gives: light to import, ten lines to a trained module, one line for every mistake."""

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import diastole
from diastole.experiments.experiment import Experiment as Served
from diastole.models.allowed import give
from diastole.models.networks.custom import own as custom
from diastole.server.events import Event, RoundClosed

HERE = "127.0.0.1:0"
DIGITS = Path(__file__).resolve().parents[2] / "simulations" / "examples" / "digits.toml"


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def examples(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    y = torch.arange(count) % 3
    return torch.randn(count, 1, 8, 8, generator=draws) + y[:, None, None, None], y


def experiment(**changes: object) -> diastole.Experiment:
    x, y = examples()
    given: dict[str, object] = {"model": net(), "train": (x, y), "test": (x[:60], y[:60]), "devices": 4, "rounds": 2}
    return diastole.Experiment(**given | changes)  # type: ignore[arg-type]


def test_importing_it_is_light_and_it_says_what_there_is() -> None:
    heavy = "torch", "numpy", "grpc", "pydantic", "rich", "matplotlib", "flwr", "typer"
    code = f"import sys, diastole; print([name for name in {heavy} if name in sys.modules], dir(diastole))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ['Dataset', 'DiastoleError', 'Examples', 'Experiment', 'LocalTask', ")
    for name in dir(diastole):
        assert getattr(diastole, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train'; there are Dataset"):
        diastole.train  # noqa: B018


def test_a_network_and_tensors_of_ones_own_give_a_module_for_each_tier() -> None:
    result = diastole.simulate(experiment(rounds=4, training={"epochs": 4}))
    assert result.accuracy is not None
    assert "4 of 4 rounds" in repr(result)
    assert result.accuracy > 0.8
    assert [row.devices for row in result.tiers] == [1, 1, 2]
    sizes = [sum(p.numel() for p in result.model(tier=tier).parameters()) for tier in ("large", "medium", "small")]
    assert sizes[0] > sizes[1] > sizes[2]
    assert result.model(tier="small")(torch.randn(5, 1, 8, 8)).shape == (5, 3)
    assert result.plot().axes


def test_training_starts_from_the_modules_own_weights_and_leaves_them_alone() -> None:
    mine = net()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    result = diastole.simulate(experiment(model=mine, rounds=0, method="width"))
    assert all(torch.equal(result.state[name], before[name]) for name in before)
    diastole.simulate(experiment(model=mine, rounds=1, method="width"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())


def test_examples_may_be_arrays_or_a_torch_data_set() -> None:
    x, y = examples()
    digests = {
        experiment(train=train).dataset.digest
        for train in ((x, y), (x.numpy(), y.numpy().astype(np.int32)), (x.double(), y), TensorDataset(x, y))
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 3}, "train: expected (x, y), or a data set of such pairs"),
        ({"train": (examples()[0], examples()[1][:4])}, "targets are int64 [4]; whole numbers or values [300, ...]"),
        ({"devices": {"huge": 2}}, "devices: there is no tier 'huge'; there are large, medium, small"),
        ({"method": "magic"}, "method: must be one of diastole"),
        ({"nosuch": 1}, "nosuch: no such key"),
        ({"tiers": {"a": 2.0}}, "tiers.a.width: Input should be less than or equal to 1"),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(diastole.DiastoleError, match=r"^[^\n]*$") as caught:
        experiment(**changes)
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_module_of_this_process_stays_in_it(tmp_path: Path) -> None:
    made = experiment()
    with pytest.raises(diastole.DiastoleError, match="engine processes: its processes cannot see a module"):
        diastole.simulate(made.changed(engine="processes"))
    with pytest.raises(diastole.DiastoleError, match="devices cannot import a module"):
        diastole.serve(made, "127.0.0.1:0", tmp_path)
    with pytest.raises(diastole.DiastoleError, match="2 jobs: processes cannot share tensors"):
        diastole.compare(made, ["width"], seeds=2, jobs=2)
    batched, loop = (diastole.simulate(made.changed(engine=engine, method="width")) for engine in ("batched", "loop"))
    torch.testing.assert_close(batched.state, loop.state, rtol=1e-4, atol=1e-5)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.flatten(1)).relu()
        return self.last(self.second(hidden).relu())


class Halved(Plain, diastole.Objective):
    """Has a loss of its own, half of the run's."""

    def loss(self, x: torch.Tensor, y: torch.Tensor, step: diastole.Step) -> torch.Tensor:
        return step.criterion.mean(self(x), y) / 2


@pytest.mark.slow
def test_a_module_brings_its_own_loss_to_methods_that_keep_it() -> None:
    def run(model: nn.Module, rate: float, **changes: object) -> dict[str, torch.Tensor]:
        training = {"momentum": 0.0, "learning_rate": rate}
        return diastole.simulate(experiment(model=model, method="width", training=training, **changes)).state

    state = run(Halved(), 0.125)
    torch.testing.assert_close(run(Plain(), 0.0625), state)
    torch.testing.assert_close(run(Halved(), 0.125, engine="batched"), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "fjord"},
            r"method fjord trains fjord 0.25 by a loss of its own, so the loss of given:Halved_\w+, a ",
        ),
        ({"method": "splitmix"}, "method splitmix trains splitmix .* by a loss of its own"),
        ({"model__stages": [["first"], ["second"]]}, "model.stages takes the module apart, .*; leave model.stages out"),
    ],
)
def test_a_method_that_would_drop_a_modules_own_loss_is_refused(changes: dict[str, object], message: str) -> None:
    made = experiment(model=Halved(), method="width").changed(**changes)
    with pytest.raises(diastole.DiastoleError, match=rf"^{message}[^\n]*$"):
        diastole.simulate(made)


def test_devices_train_by_a_loop_of_ones_own() -> None:
    def fit(module: nn.Module, examples: diastole.Examples, task: diastole.LocalTask) -> float:
        optimiser = torch.optim.SGD(module.parameters(), lr=task.training.learning_rate, momentum=0.9)
        for batch in torch.randperm(len(examples), generator=task.generator).split(task.training.batch_size):
            loss = task.loss(module, examples.x[batch], examples.y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

    made = experiment(fit=fit)
    expected = diastole.simulate(experiment()).state
    for engine in ("loop", "batched"):
        torch.testing.assert_close(diastole.simulate(made.changed(engine=engine)).state, expected)
    with pytest.raises(
        diastole.DiastoleError, match="engine processes: its processes cannot see a module or a function"
    ):
        diastole.simulate(made.changed(engine="processes"))


def test_the_loop_and_the_loss_of_the_page_on_training_run_as_they_stand() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "training.md"
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(block, names)
    assert issubclass(names["Net"], diastole.Objective)
    plain = experiment(model=names["Net"](), method="width", classes=10)
    state = diastole.simulate(plain).state
    by_loop = diastole.simulate(plain.changed(training__fit=give(names["fit"]), training__learning_rate=0.01)).state
    assert all(tensor.isfinite().all() and not torch.equal(tensor, by_loop[name]) for name, tensor in state.items())


def test_two_modules_never_pass_for_one() -> None:
    one, other = net(), net()
    assert custom.register(one) == custom.register(other)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert custom.register(one) != custom.register(other)


def test_a_file_and_its_keys(tmp_path: Path) -> None:
    made = diastole.Experiment.load(DIGITS, method="width", rounds__count=1)
    assert (made.settings.method, made.settings.rounds.count) == ("width", 1)
    result = diastole.simulate(made, progress=True)
    result.save(tmp_path)
    small = diastole.load_model(tmp_path / "model.safetensors", tier="small")
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(small(x), result.model(tier="small")(x))


def test_methods_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = diastole.compare(experiment(rounds=1), ["heterofl", "smallest"], seeds=2, folder=tmp_path)
    assert [(row["method"], row["seed"]) for row in table.rows] == [
        ("width", 0),
        ("width", 1),
        ("smallest", 0),
        ("smallest", 1),
    ]
    assert str(table).startswith("width: global ")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(diastole.DiastoleError, match="pandas is not installed"):
        table.frame()


def test_each_method_at_its_best_values(tmp_path: Path) -> None:
    made, rates = experiment(rounds=1), [1e-4, 0.1]
    table = diastole.compare(
        made, ["width"], seeds=1, folder=tmp_path, track=["csv"], grid={"training.learning_rate": rates}
    )
    assert table.sweep is not None
    assert table.sweep.best("width") == {"training.learning_rate": 0.1}
    assert [row["training.learning_rate"] for row in table.sweep.rows] == rates
    assert "with training.learning_rate 0.1" in str(table.sweep)
    # It is the run of the experiment that has the best values.
    best = table.sweep.experiment("width")
    assert diastole.simulate(best).accuracy == table.rows[0]["accuracy"]
    assert len(list(tmp_path.glob("**/rounds.csv"))) == 3
    again = diastole.sweep(made, ["width"], {"training.learning_rate": rates}, folder=tmp_path / "sweep")
    assert again.rows == table.sweep.rows
    for plot in (again.plot, table.plot):
        assert plot().axes


def test_methods_at_values_that_were_saved_and_at_equal_bytes(tmp_path: Path) -> None:
    made = experiment(rounds=1)
    found = diastole.sweep(made, ["smallest", "width"], {"training.learning_rate": [0.1]})
    assert found.save(tmp_path) == tmp_path / "tuned.json"
    methods, folder = ["width", "smallest"], tmp_path / "runs"
    table = diastole.compare(
        made, methods, seeds=1, folder=folder, tuned=tmp_path, equal=["bytes"], against="heterofl", most_rounds=1
    )
    assert table.comparison.experiment["values"]["smallest"] == {"training.learning_rate": 0.1}
    (equal,) = table.comparison.equal
    assert (equal.by, equal.anchor, table.comparison.against) == ("bytes", "width", "width")
    assert equal.readings["width"][0] is not None
    with pytest.raises(diastole.DiastoleError, match="was tuned for another experiment, of other training"):
        diastole.compare(made.changed(training__epochs=2), methods, tuned=tmp_path)
    with pytest.raises(diastole.DiastoleError, match="against fedavg: is not compared"):
        diastole.compare(made, methods, against="fedavg")


@pytest.mark.slow
def test_a_folder_keeps_a_run(tmp_path: Path) -> None:
    def made(rounds: int) -> diastole.Experiment:
        # Without the schedule of the paper, which depends on how many rounds there are.
        return experiment(rounds=rounds, method="width", recipe="none")

    whole = diastole.simulate(made(3))
    assert len(diastole.simulate(made(2), folder=tmp_path, track=["csv"]).rounds) == 2
    seen = list[str]()
    found = diastole.simulate(made(3), folder=tmp_path, observers=[lambda event: seen.append(type(event).__name__)])
    assert seen.count("RoundClosed") == 1
    assert all(torch.equal(found.state[name], tensor) for name, tensor in whole.state.items())
    assert (tmp_path / "report.json").exists()
    with pytest.raises(diastole.DiastoleError, match="track: csv need a folder to write to"):
        diastole.simulate(made(1), track=["csv"])


def test_serve_and_join_from_python(tmp_path: Path) -> None:
    made = diastole.Experiment.load(
        DIGITS, method="width", rounds__count=2, tiers={"all": {"devices": 1, "width": 0.5}}, data__proxy=40
    )
    x, y = made.dataset.train.x[:50], made.dataset.train.y[:50]
    with diastole.serve(made, HERE, tmp_path, track=["jsonl"], enroll=HERE, web=HERE) as run:
        assert run.web is not None
        token = run.web.reader.read_text().strip()
        page_at = Request(f"{run.web.url(run.web_port or 0)}metrics", headers={"authorization": f"Bearer {token}"})
        with urlopen(page_at) as page:
            assert b"diastole_info" in page.read()
        address, own, token = f"127.0.0.1:{run.port}", tmp_path / "alice", run.invite("alice")
        with pytest.raises(diastole.DiastoleError, match="enroll makes this device's certificate, in state"):
            diastole.join(address, (x, y), enroll=token)
        summary = diastole.join(address, (x, y), state=own, enroll=token, plan="reference")
        result = run.wait(60)
    assert summary.delivered == 2
    assert [row.device for row in result.devices] == ["alice"]
    assert "round_closed" in (run.folder / "events.jsonl").read_text()


def test_what_is_served_is_what_the_command_serves_of_the_same_files(tmp_path: Path) -> None:
    with diastole.serve(
        [DIGITS, diastole.Experiment.load(DIGITS, engine="loop", rounds__count=3)], HERE, tmp_path
    ) as run:
        found = [entry.run.experiment.model_dump_json() for entry in run.entries]
    expected = [Served.load(DIGITS), Served.load(DIGITS, ["rounds.count=3"])]
    labels = torch.zeros(1, dtype=torch.int64)
    assert found == [each.resolved(labels).model_dump_json() for each in expected]
    assert run.results == [None, None]


@pytest.mark.slow
def test_the_command_goes_on_with_a_queue_that_python_has_begun(tmp_path: Path, run: Any) -> None:
    paths, held = [tmp_path / "one.toml", tmp_path / "two.toml"], threading.Event()
    for number, path in enumerate(paths):
        path.write_text(
            f"seed = {number}\nmethod = 'width'\nengine = 'loop'\n[data]\nproxy = 40\n[rounds]\ncount = 2\n"
            "[tiers.all]\ndevices = 1\nwidth = 0.25\n"
        )
    examples = diastole.Experiment.load(paths[0]).dataset.train.part(0, 20)

    def watch(event: Event) -> None:
        if isinstance(event, RoundClosed):
            threading.Thread(target=lambda: (first.suspend(30), held.set())).start()

    first = diastole.serve(paths, HERE, tmp_path / "state", observers=[watch])
    where = f"127.0.0.1:{first.port}"
    with ThreadPoolExecutor(1) as pool:
        device = pool.submit(diastole.join, where, (examples.x, examples.y), "alice", plan="reference")
        assert held.wait(60)
        common = ("--admin", "127.0.0.1:0", "--state", tmp_path / "state", "--json")
        code, out, error = run("serve", *paths, "--listen", where, *common)
        assert code == 0, error
        assert device.result(60).delivered in (3, 4)
    assert {path.name for path in (tmp_path / "state" / "runs").iterdir()} == {e.berth.run_id for e in first.entries}
    assert [len(found["rounds"]) for found in json.loads(out)] == [2, 2]


def test_a_list_without_an_experiment_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(diastole.DiastoleError, match="there is no experiment to serve"):
        diastole.serve([], HERE, tmp_path)


def test_the_environment_is_prepared_before_torch_and_grpc_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_ENABLE_FORK_SUPPORT", raising=False)
    assert diastole.Examples
    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
