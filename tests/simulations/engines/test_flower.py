"""Flower as an engine gives the bits of the loop; as an ecosystem it takes our strategy."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ray starts its workers with the lowest priority unless told not to, and beside other work they then starve.
os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
pytest.importorskip("flwr")
pytest.importorskip("ray")

import torch
from federations import federation, tasks
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from flwr.simulation import run_simulation

from diastole.experiments.result import Result as RunResult
from diastole.experiments.result import result_of
from diastole.models.methods.registry import build, make_method
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.task import Task, Update
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.server.link import Failure, Link
from diastole.server.settings import RoundConfig
from diastole.simulations.devices import Federation
from diastole.simulations.engines.flower import partitions
from diastole.simulations.engines.flower.client import client_app
from diastole.simulations.engines.flower.errors import FlowerError, require
from diastole.simulations.engines.flower.partitions import Partitions
from diastole.simulations.engines.flower.records import Order, arrays_of, profile_of, profile_record, state_of
from diastole.simulations.engines.flower.strategy import TierStrategy
from diastole.simulations.simulate import engine, simulate

# Ray leaves a socket or two to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MODEL = ModelConfig("cnn", (1, 8, 8), 10, (8, 16))
TRAINING = TrainConfig(batch_size=8)
WIDTHS = (1.0, 0.5)
BACKEND = {
    "init_args": {"log_to_driver": False, "logging_level": "ERROR", "num_cpus": 1},
    "client_resources": {"num_cpus": 1},
}


# The engine. What takes the time is that Ray starts a process for each actor, which then imports torch and Flower: so
# one test lets the engine start two, and the others share one.


def assert_same(found: RunResult, expected: RunResult) -> None:
    assert all(torch.equal(found.state[name], expected.state[name]) for name in expected.state)
    for one, other in zip(found.rounds, expected.rounds, strict=True):
        assert (one.updates, one.accuracy, one.tier_accuracy) == (other.updates, other.accuracy, other.tier_accuracy)
        assert (one.bytes_down, one.bytes_up) == (other.bytes_down, other.bytes_up)


def test_flower_gives_the_bits_of_the_loop() -> None:
    level, path = logging.getLogger("flwr").level, os.environ.get("PYTHONPATH")
    assert_same(simulate(federation(engine="flower", workers=2)), simulate(federation()))
    assert (logging.getLogger("flwr").level, os.environ.get("PYTHONPATH")) == (level, path)


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[Federation, Link]]:
    made = federation(engine="flower", workers=1)
    with engine(made, made.run.method().offers()) as link:
        yield made, link


def test_so_does_a_method_that_needs_all_updates(parts: tuple[Federation, Link]) -> None:
    run = federation(method="conv").run
    coordinator = run.coordinator(parts[1])
    coordinator.run()
    assert_same(result_of(run, coordinator), simulate(federation(method="conv")))


def test_a_client_that_raises_is_a_failure_of_its_device_alone(
    parts: tuple[Federation, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, link = parts
    given, states = tasks(made)
    one, two, *others = given
    # The sub-model of another width than the one that is sent with it.
    broken = Task(one.task_id, 1, one.device, spec_of(0.5), one.training, 1)
    states[broken.spec] = states[one.spec]
    # An IndexError in the client's code, which is no error of ours.
    monkeypatch.setitem(link._numbers, two.device, 99)  # type: ignore[attr-defined]
    outcomes = list(link.dispatch([broken, two, *others], states, None))
    failures = {found.device: found for found in outcomes if isinstance(found, Failure)}
    assert set(failures) == {one.device, two.device}
    assert all(failure.faulty and "\n" not in failure.reason for failure in failures.values())
    assert "expected torch.float32" in failures[one.device].reason
    assert "index out of range" in failures[two.device].reason
    assert {found.task.device for found in outcomes if isinstance(found, Update)} == {t.device for t in others}


def test_closing_a_dispatch_early_leaves_the_next_one_alone(parts: tuple[Federation, Link]) -> None:
    made, link = parts
    first = link.dispatch(*tasks(made), None)
    assert isinstance(next(first), Update)
    first.close()
    found = list(link.dispatch(*tasks(made), None))
    assert sorted(o.task.device for o in found if isinstance(o, Update)) == sorted(made.devices)


def test_a_simulation_that_cannot_start_is_one_line() -> None:
    made = federation(engine="flower", workers=1, flower={"gpus": 1.0})
    with pytest.raises(FlowerError, match="ActorPool is empty"):
        simulate(made)


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diastole.simulations.engines.flower.errors.find_spec", lambda name: None)
    with pytest.raises(FlowerError, match=r"flwr and ray not installed.*pip install diastole\[flower\]"):
        require()


def test_another_machine_finds_the_same_examples(tmp_path: Path) -> None:
    made = federation()
    there = Partitions.share(tmp_path, made)
    for here in (True, False):
        partitions._open.cache_clear()
        if not here:
            shutil.rmtree(tmp_path)
        for number, device in enumerate(made.devices.values()):
            found = there.of(number)
            assert torch.equal(found.x, device.examples.x)
            assert torch.equal(found.y, device.examples.y)


# What travels


def test_states_and_profiles_survive_the_way() -> None:
    state = initial_state(MODEL, 0)
    back = state_of(arrays_of(state))
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    order = Order(MODEL, Task("r3-one", 3, "one", spec_of(0.5), TRAINING, 2**63 - 1, 0.25), 7)
    assert Order.read(order.record()) == order
    question = Message(RecordDict(), 1, "query")
    profile = Profile("phone", 12, memory=5, down=1.5)
    assert profile_of(Message(profile_record(profile), reply_to=question)) == profile
    assert profile_of(Message(RecordDict(), reply_to=question)) is None


# The strategy


def number(context: Context) -> int:
    return int(context.node_config["partition-id"])


def examples(order: Order | None, context: Context) -> Examples:
    draws = torch.Generator().manual_seed(number(context))
    return Examples(torch.randn(24, 1, 8, 8, generator=draws), torch.randint(10, (24,), generator=draws))


def profile(context: Context) -> Profile:
    width = WIDTHS[number(context) % 2]
    return Profile(f"{width:g}", 24, width_cost(MODEL, width, TRAINING).memory)


def broken() -> ClientApp:
    """Return an app of which only node 1 sends what the strategy can use."""
    app = ClientApp()

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        # Node 3 does not say what it is.
        return Message(profile_record(profile(context)) if number(context) < 3 else RecordDict(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order = Order.read(message.content.config_records["config"])
        if number(context) == 0:
            raise ValueError("broken")
        state = build(order.model, order.task.spec if number(context) == 1 else None).state_dict()
        if number(context) == 2:
            state = {name: tensor * torch.nan for name, tensor in state.items()}
        content = {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": 24})}
        return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]

    return app


class Spoilt(ClientApp):
    """Works until there is a file at `flag`, and is broken from then on."""

    def __init__(self, flag: Path) -> None:
        super().__init__()
        self._flag, self._good, self._bad = flag, client_app(examples, profile), broken()

    def __call__(self, message: Message, context: Context) -> Message:
        return (self._bad if self._flag.exists() else self._good)(message, context)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """What two rounds in a stock `ServerApp` come to: with good clients, with broken ones, and short of the quorum."""
    flag, found, server = tmp_path_factory.mktemp("flower") / "flag", list[Result](), ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        for evaluate, quorum in ((True, 1.0), (False, 0.2), (False, 0.5)):
            method = make_method("width", MODEL, WIDTHS, TRAINING)
            rounds = RoundConfig(quorum=quorum)
            strategy = TierStrategy(MODEL, method, TRAINING, rounds=rounds, evaluate=evaluate)
            found.append(strategy.start(grid, arrays_of(initial_state(MODEL, 0)), num_rounds=2))
            flag.touch()

    run_simulation(server, Spoilt(flag), 4, backend_config=BACKEND)  # type: ignore[arg-type]
    return found


def test_the_strategy_works_in_a_stock_server_app(results: list[Result]) -> None:
    result = results[0]
    before, after = initial_state(MODEL, 0), state_of(result.arrays)
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert [record["replies"] for record in result.train_metrics_clientapp.values()] == [4, 4]
    assert set(result.evaluate_metrics_clientapp[2]) == {"accuracy", "loss"}


def test_the_strategy_leaves_out_what_it_cannot_use(results: list[Result]) -> None:
    assert [record["replies"] for record in results[1].train_metrics_clientapp.values()] == [1, 1]


def test_a_round_short_of_its_quorum_leaves_the_model_alone(results: list[Result]) -> None:
    assert results[2].train_metrics_clientapp == {}
    state, before = state_of(results[2].arrays), initial_state(MODEL, 0)
    assert all(torch.equal(state[name], before[name]) for name in before)
