"""Devices hold places in shared examples; workers map them from files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.models.training import Examples
from diastole.proto.profile import Profile
from diastole.simulations.devices import Device, make_federation
from diastole.simulations.engines.examples import SharedExamples
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

DESCRIPTION = {
    "name": "dealt",
    "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 3, "width": 0.5}},
    "model": {"name": "cnn", "widths": [8, 16]},
}


@pytest.mark.slow
def test_devices_hold_the_data_set_once_and_every_example_at_most_once() -> None:
    dataset = load("digits", None, Reading())
    devices = make_federation(Simulation.parse(DESCRIPTION, "the test"), dataset).devices
    assert all(device.held is dataset.train for device in devices.values())
    indices = torch.cat([device.index for device in devices.values()])  # type: ignore[misc]
    assert len(indices.unique()) == len(indices) == sum(device.profile.examples for device in devices.values())
    for device in devices.values():
        assert torch.equal(device.examples.y, device.targets)
        for k, place in enumerate(device.index.tolist()):  # type: ignore[union-attr]
            assert torch.equal(device.examples.x[k], dataset.train.x[place])


def test_a_device_sees_its_examples_shifted_alike_at_every_look() -> None:
    plainly, shift = {"partition": {"kind": "iid"}}, {"partition": {"kind": "iid", "noise": 0.5}}
    plain, shifted = (
        make_federation(Simulation.parse(DESCRIPTION | more, "the test")).devices for more in (plainly, shift)
    )
    distances = []
    for one, other in zip(plain.values(), shifted.values(), strict=True):
        assert torch.equal(other.examples.x, other.examples.x)
        assert torch.equal(other.targets, one.targets)
        distances.append(float((other.examples.x - one.examples.x).std()))
    assert distances[0] == 0.0
    for number, distance in enumerate(distances):
        assert abs(distance - 0.5 * number / 4) < 0.01


def test_a_data_set_in_files_is_not_copied_but_mapped_where_devices_see_it_as_it_is(tmp_path: Path) -> None:
    draws, whole = np.random.default_rng(0), tmp_path / "set"
    whole.mkdir()
    for part, count in (("train", 40), ("test", 4)):
        np.save(whole / f"x_{part}.npy", draws.integers(0, 256, (count, 8, 8, 3), np.uint8))
        np.save(whole / f"y_{part}.npy", np.arange(count) % 3)
    data = {"data": {"name": "npy", "path": str(whole), "proxy": 6}}
    for number, more in enumerate(({}, {"partition": {"noise": 0.5}})):
        devices = make_federation(Simulation.parse(DESCRIPTION | data | more, "the test")).devices
        folder = tmp_path / str(number)
        folder.mkdir()
        shared = SharedExamples.share(folder, devices)
        assert [
            path.stat().st_size for path in sorted(folder.iterdir(), key=lambda path: "xyo".index(path.name[0]))
        ] == (SharedExamples.sizes(devices))
        assert (shared.file is None) == bool(more)
        assert len(pickle.dumps(shared)) < 1000
        of = pickle.loads(pickle.dumps(shared)).map()
        for k, device in enumerate(devices.values()):
            assert torch.equal(of(k).x, device.examples.x)
            assert torch.equal(of(k).y, device.examples.y)


@pytest.mark.slow
def test_a_data_set_in_files_gives_the_bits_of_an_archive_on_the_loop_and_in_processes(tmp_path: Path) -> None:
    draws, whole = np.random.default_rng(0), tmp_path / "set"
    whole.mkdir()
    arrays = {
        f"{key}_{part}": draws.integers(
            0, 256 if key == "x" else 3, (count, *((8, 8, 3) if key == "x" else ())), np.uint8
        )
        for part, count in (("train", 60), ("test", 6))
        for key in "xy"
    }
    for name, array in arrays.items():
        np.save(whole / f"{name}.npy", array)
    np.savez(tmp_path / "set.npz", **arrays)
    states = []
    for kind, path, engine in (("npz", "set.npz", "loop"), ("npy", "set", "loop"), ("npy", "set", "processes")):
        more = {"data": {"name": kind, "path": str(tmp_path / path), "proxy": 6}, "engine": engine, "workers": 2}
        rounds = {"rounds": {"count": 2}, "partition": {"kind": "iid"}}
        result = simulate(make_federation(Simulation.parse(DESCRIPTION | more | rounds, "the test")))
        states.append(result.state)
    for state in states[1:]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())


def test_files_give_back_what_each_device_has_and_are_as_large_as_foretold(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    held = Examples(torch.randn(9, 2, 3, generator=draws), torch.arange(9))
    places = ([8, 1, 4], [], [0], [7, 2])
    devices = {
        f"device-{k}": Device(Profile("any", len(place)), held, torch.tensor(place, dtype=torch.int64))
        for k, place in enumerate(places)
    }
    dealt = SharedExamples.share(tmp_path, devices)
    sizes = [Path(slab.name).stat().st_size for slab in (dealt.x, dealt.y, dealt.offsets)]
    assert sizes == SharedExamples.sizes(devices)
    of = dealt.map()
    for k, place in enumerate(places):
        found = of(k)
        assert found.y.tolist() == place
        assert torch.equal(found.x, held.x[place])
