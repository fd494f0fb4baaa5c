"""Every codec gives the same bits in a simulation and over gRPC, and moves the same bytes."""

from pathlib import Path

import pytest
import torch
from threaded import serve

from diastole.experiments.checkpoint import Checkpoint
from diastole.experiments.result import Result
from diastole.server.snapshot import Snapshot
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

CODINGS = [
    ("top-k:0.1", "delta:int8"),
    *(
        pytest.param(up, down, marks=pytest.mark.slow)
        for up, down in (
            ("int8", "int4"),
            ("int4", "delta:top-k:0.2"),
            ("fp16", "bf16"),
            ("exact", "int8"),
            ("top-k:0.1", "exact"),
            ("exact", "delta"),
        )
    ),
]


def small(up: str, down: str, **more: object) -> Federation:
    document = {
        "seed": 7,
        "model": {"widths": [4, 8], "group": 2},
        "data": {"proxy": 0},
        "rounds": {"count": 3},
        "codecs": {"up": up, "down": down},
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
    }
    return make_federation(Simulation.parse(document | more, "test"))


def same(left: Result, right: Result) -> None:
    for name, tensor in left.state.items():
        assert torch.equal(tensor, right.state[name]), name
    for one, other in zip(left.rounds, right.rounds, strict=True):
        assert one.updates == other.updates == 3
        assert (one.bytes_down, one.bytes_up) == (other.bytes_down, other.bytes_up)


@pytest.mark.parametrize(("up", "down"), CODINGS)
def test_grpc_and_loop_give_the_same_bits(up: str, down: str, tmp_path: Path) -> None:
    federation = small(up, down)
    same(simulate(federation), serve(federation, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("down", ["delta:int8", "int8"])
def test_a_run_that_goes_on_gives_the_bits_of_one_that_was_never_stopped(down: str, tmp_path: Path) -> None:
    federation = small("top-k:0.1", down, partition={"alpha": 5.0})
    whole = simulate(federation)
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", federation.simulation, federation.run.dataset.digest)

    class Killed(BaseException):
        pass

    def keep(snapshot: Snapshot) -> None:
        Checkpoint.keep(checkpoint, snapshot)
        if len(snapshot.closed) == 2:
            raise Killed

    checkpoint.keep = keep  # type: ignore[method-assign]
    with pytest.raises(Killed):
        simulate(federation, checkpoint=checkpoint)
    again = Checkpoint(tmp_path / "run.checkpoint", federation.simulation, federation.run.dataset.digest)
    same(whole, simulate(federation, checkpoint=again))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "flower"])
def test_other_engines_give_the_bits_of_the_loop(engine: str) -> None:
    if engine == "flower":
        pytest.importorskip("ray")
    same(
        simulate(small("top-k:0.1", "delta:int8")), simulate(small("top-k:0.1", "delta:int8", engine=engine, workers=1))
    )


@pytest.mark.slow
def test_the_virtual_clock_knows_what_is_moved() -> None:
    field = {"population": {"preset": "pi"}}
    plain, int8, delta = (
        simulate(small(up, down, **field)) for up, down in (("exact",) * 2, ("int8",) * 2, ("int8", "delta:top-k:0.05"))
    )
    for coded in (int8, delta):
        assert plain.field is not None
        assert coded.field is not None
        pairs = [(plain.field.devices[name], coded.field.devices[name]) for name in plain.field.devices]
        assert all(coded.transfer < exact.transfer for exact, coded in pairs if exact.transfer)
        assert 0 < sum(it.up for _, it in pairs) < 0.4 * sum(it.up for it, _ in pairs)
    assert delta.field is not None
    # The first download is whole, and those that follow are a thirtieth of it.
    assert sum(it.down for it in delta.field.devices.values()) < 0.5 * sum(it.down for it, _ in pairs)
