"""Whole federations of real processes over real sockets."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from diastole.server.coordinator import Coordinator
from diastole.server.events import DeviceLost, Event, RoundClosed, RoundStarted
from diastole.simulations.demo import run_real
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation


def small(
    method: str, rounds: int = 3, frozen: Sequence[str] = (), fold: str = "mean", sampler: str = "", **tiers: int
) -> Federation:
    """Return a federation of one device a tier, or as many as asked for."""
    widths = {"large": 1.0, "small": 0.25}
    counts = tiers or dict.fromkeys(widths, 1)
    return make_federation(
        Simulation.parse(
            {
                "method": method,
                "seed": 7,
                "data": {"proxy": 60},
                "rounds": {"count": rounds} | ({"sampler": sampler, "cohort": 2} if sampler else {}),
                "proxy": {"epochs": 1},
                "model": {"frozen": frozen},
                "admission": {"fold": fold},
                "methods": {"conv": {"epochs": 1, "weight_epochs": 1}},
                "tiers": {name: {"devices": count, "width": widths[name]} for name, count in counts.items()},
            },
            "test",
        )
    )


@pytest.mark.parametrize(
    ("method", "frozen", "fold"),
    [
        ("conv", (), "mean"),
        pytest.param("width", ["stages.0.*"], "mean", marks=pytest.mark.slow),
        pytest.param("width", (), "median", marks=pytest.mark.slow),
        pytest.param("diastole", ["stages.0.*"], "mean", marks=pytest.mark.slow),
        pytest.param("diastole", (), "trimmed-mean", marks=pytest.mark.slow),
        pytest.param("smallest", (), "mean", marks=pytest.mark.slow),
    ],
)
def test_grpc_and_loop_give_the_same_bits(method: str, frozen: Sequence[str], fold: str, tmp_path: Path) -> None:
    federation = small(method, frozen=frozen, fold=fold)
    simulated = simulate(federation)
    real = run_real(federation, tmp_path)
    for name, tensor in simulated.state.items():
        assert torch.equal(tensor, real.state[name]), name
    for expected, closed in zip(simulated.rounds, real.rounds, strict=True):
        assert closed.updates == 2
        assert closed.scores == expected.scores
        assert closed.tier_scores == expected.tier_scores
        assert (closed.bytes_down, closed.bytes_up) == (expected.bytes_down, expected.bytes_up)
    assert {n: (a.accepted, a.macs, a.bytes_up) for n, a in real.accounts.items()} == {
        n: (a.accepted, a.macs, a.bytes_up) for n, a in simulated.accounts.items()
    }
    assert not any(path.suffix == ".part" for path in tmp_path.rglob("*"))
    # Every agent has trained on its own shard alone.
    for name, device in federation.devices.items():
        log = (tmp_path / "agents" / f"{name}.log").read_text()
        assert f"with {len(device.examples)} examples" in log
        assert "3 updates delivered" in log
    total = sum(len(device.examples) for device in federation.devices.values())
    assert total == len({tuple(x.flatten().tolist()) for d in federation.devices.values() for x in d.examples.x})


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["fair-share", "tier-balanced"])
def test_grpc_and_loop_draw_the_same_cohorts(sampler: str, tmp_path: Path) -> None:
    federation = small("width", rounds=5, sampler=sampler, large=1, small=2)
    simulated, real = simulate(federation), run_real(federation, tmp_path)
    for name, tensor in simulated.state.items():
        assert torch.equal(tensor, real.state[name]), name
    accepted = {name: account.accepted for name, account in simulated.accounts.items()}
    assert {name: account.accepted for name, account in real.accounts.items()} == accepted
    assert sorted(accepted.values()) == ([3, 3, 4] if sampler == "fair-share" else [2, 3, 5])


@pytest.mark.slow
def test_a_federation_survives_the_death_of_an_agent(tmp_path: Path) -> None:
    federation = small("width", rounds=4, large=1, small=1)
    events: list[Event] = []
    running: dict[str, subprocess.Popen[bytes]] = {}

    def kill(event: Event) -> None:
        events.append(event)
        if isinstance(event, RoundStarted) and event.round == 2:
            os.kill(running["device-01"].pid, signal.SIGKILL)

    def started(coordinator: Coordinator, processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
        running.update(processes)

    outcome = run_real(federation, tmp_path, (kill,), lease=1.5, started=started)
    assert [event.device for event in events if isinstance(event, DeviceLost)] == ["device-01"]
    closed = [event for event in events if isinstance(event, RoundClosed)]
    assert [(event.round, event.abandoned) for event in closed] == [(n, "") for n in (1, 2, 3, 4)]
    # The kill lands somewhere in round 2: before, during or after the update.
    assert closed[0].updates == 2
    assert closed[1].updates in (1, 2)
    assert [event.updates for event in closed[2:]] == [1, 1]
    assert outcome.accounts["device-00"].accepted == 4
    assert running["device-00"].returncode == 0
