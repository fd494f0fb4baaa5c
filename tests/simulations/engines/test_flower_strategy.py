"""Flower as an ecosystem takes our strategy: it works in a stock `ServerApp`.

This is a module of its own because a process has one Ray at a time, and `test_flower` keeps one for its engine.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

# Ray starts its workers with the lowest priority unless told not to, and beside other work they then starve.
os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
pytest.importorskip("flwr")
pytest.importorskip("ray")

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from flwr.simulation import run_simulation

from diastole.models.methods.registry import build, make_method
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.server.settings import RoundConfig
from diastole.simulations.engines.flower.client import client_app
from diastole.simulations.engines.flower.errors import FlowerError
from diastole.simulations.engines.flower.records import Order, arrays_of, profile_record, state_of
from diastole.simulations.engines.flower.strategy import TierStrategy

# Ray leaves a socket or two to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MODEL = ModelConfig("cnn", (1, 8, 8), 10, (8, 16))
TRAINING = TrainConfig(batch_size=8)
WIDTHS, METRICS = (1.0, 0.5), ("accuracy", "top-3")
NODES, GOOD = 6, (1, 4, 5)
BACKEND = {
    "init_args": {"log_to_driver": False, "logging_level": "ERROR", "num_cpus": 1},
    "client_resources": {"num_cpus": 1},
}


def number(context: Context) -> int:
    return int(context.node_config["partition-id"])


def examples(order: Order | None, context: Context) -> Examples:
    draws = torch.Generator().manual_seed(number(context))
    return Examples(torch.randn(24, 1, 8, 8, generator=draws), torch.randint(10, (24,), generator=draws))


def profile(context: Context) -> Profile:
    width = WIDTHS[number(context) % 2]
    return Profile(f"{width:g}", 24, width_cost(MODEL, width, TRAINING).memory)


def broken() -> ClientApp:
    """Return an app of which nodes 1, 4 and 5 send what the strategy can use: fewer, and it would abandon the round."""
    app = ClientApp()

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        # Node 3 does not say what it is.
        return Message(profile_record(profile(context)) if number(context) != 3 else RecordDict(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order = Order.read(message.content.config_records["config"])
        if number(context) == 0:
            raise ValueError("broken")
        state = build(order.model, order.task.spec if number(context) in GOOD else None).state_dict()
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


def by(scores: Mapping[str, Any], name: str) -> list[float]:
    """Return a score of each size."""
    return [value for key, value in scores.items() if key.startswith(f"{name}/")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """What two rounds in a stock `ServerApp` come to: with good clients, with broken ones, and short of the quorum."""
    flag, found, server = tmp_path_factory.mktemp("flower") / "flag", list[Result](), ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        for evaluate, quorum in ((True, 1.0), (False, 0.2), (False, 0.8)):
            method = make_method("width", MODEL, WIDTHS, TRAINING)
            rounds = RoundConfig(quorum=quorum)
            strategy = TierStrategy(MODEL, method, TRAINING, rounds=rounds, evaluate=evaluate, metrics=METRICS)
            found.append(strategy.start(grid, arrays_of(initial_state(MODEL, 0)), num_rounds=2))
            flag.touch()

    run_simulation(server, Spoilt(flag), NODES, backend_config=BACKEND)  # type: ignore[arg-type]
    return found


@pytest.mark.slow
def test_the_strategy_works_in_a_stock_server_app(results: list[Result]) -> None:
    result = results[0]
    before, after = initial_state(MODEL, 0), state_of(result.arrays)
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert [record["replies"] for record in result.train_metrics_clientapp.values()] == [NODES, NODES]
    scores = result.evaluate_metrics_clientapp[2]
    sizes = {name.partition("/")[2] for name in scores} - {""}
    assert sizes
    assert set(scores) == {*METRICS, "loss"} | {f"{name}/{size}" for name in (*METRICS, "loss") for size in sizes}
    # The mean over all nodes lies between those of the sizes.
    assert all(min(found) <= scores[name] <= max(found) for name in METRICS for found in [by(scores, name)])


@pytest.mark.slow
def test_the_strategy_leaves_out_what_it_cannot_use(results: list[Result]) -> None:
    assert [record["replies"] for record in results[1].train_metrics_clientapp.values()] == [len(GOOD), len(GOOD)]


@pytest.mark.slow
def test_a_round_short_of_its_quorum_leaves_the_model_alone(results: list[Result]) -> None:
    assert results[2].train_metrics_clientapp == {}
    state, before = state_of(results[2].arrays), initial_state(MODEL, 0)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_a_goal_that_flower_cannot_keep_is_refused() -> None:
    method = make_method("width", MODEL, list(WIDTHS), TRAINING)
    with pytest.raises(FlowerError, match=r"^rounds\.goal is 2; [^\n]*leave it out$"):
        TierStrategy(MODEL, method, TRAINING, rounds=RoundConfig(goal=2))
