"""SN-Net and SN-Netv2: which routes are trained, by devices and by the server."""

from collections import Counter
from typing import Any

import pytest
import torch
from stitching import VIT, make, proxy, started
from torch import Tensor

from diastole.models.cost import Cost
from diastole.models.method import Size
from diastole.models.methods.stitching.routes import Route, two_way
from diastole.models.methods.stitching.snnetv2 import groups
from diastole.models.methods.stitching.stitched import EveryRoute, Part, Stitched, spec_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"initialise": "proxy"}, {"initialise": "none"}, {"depths": [[1], [3]]}])
def test_a_resumed_method_has_its_routes_open_and_needs_no_proxy_set(options: dict[str, Any]) -> None:
    made, state = started(**options)
    other = make(VIT, warmup=0, **options)
    other.resume(state, None, Moment(2, 4), {name: tensor.clone() for name, tensor in made.memory().items()})
    fits = {f"device-{k}": made.offers() for k in range(20)}
    given = other.assign(fits, Moment(2, 4, 9))
    assert given == made.assign(fits, Moment(2, 4, 9))
    assert max(size.spec.options.route for size in given.values()) > 2
    assert other.prepare(state, None, Moment(3, 4)) is state


@pytest.mark.slow
def test_the_server_trains_stitches_only_once_they_have_started() -> None:
    for warmup, moved in ((0.5, False), (0.0, True)):
        made = make(VIT, warmup=warmup)
        state = made.prepare(made.initial(1), proxy(VIT), Moment(1, 4))
        after = made.learn(state, proxy(VIT), TrainConfig(epochs=4, batch_size=4), Moment(1, 4, 3))
        stitches = [name for name in state if name.startswith("stitches.")]
        assert any(not torch.equal(after[name], state[name]) for name in stitches) == moved
        assert not torch.equal(after["anchors.0.classifier.bias"], state["anchors.0.classifier.bias"])


# Drawing routes


@pytest.mark.slow
def test_routes_are_drawn_uniformly_among_those_that_fit_anew_each_round() -> None:
    made, _ = started()
    sizes = made.offers()[:4]
    fits = {f"device-{k:03d}": sizes for k in range(100)}
    rounds = [made.assign(fits, Moment(number, 8, number)) for number in range(1, 7)]
    counts = Counter(size.spec for given in rounds for size in given.values())
    assert set(counts) == {size.spec for size in sizes}
    assert 110 < min(counts.values()) <= max(counts.values()) < 190
    assert rounds[0] != rounds[1]
    assert rounds[0] == made.assign(fits, Moment(1, 8, 1))


def size_of(macs: int, route: int) -> Size:
    return Size(spec_of("snnetv2", Part((1.0,), route=route)), Cost(1, macs, 3 * macs, 1, 1, 1, 1))


def test_evenly_spaced_routes_of_twelve_blocks_fall_into_thirteen_groups() -> None:
    family = two_way(ModelConfig("vit", (1, 8, 8), 4, (16,), (12,), group=4), (0.25, 1.0))
    sizes = []
    for number, route in enumerate(family.routes, 1):
        large = sum(segment.stop - segment.start for segment in route.segments if segment.anchor)
        sizes.append(size_of(1000 + 100 * large + len(route.stitches), number))
    found = groups(sizes, gap=(2200 - 1000) / (2 * 12))
    assert [len(group) for group in found] == [1, *[12] * 11, 1]
    assert groups([], 1.0) == []


def test_a_group_opens_where_a_route_exceeds_the_first_of_the_one_before() -> None:
    sizes = [size_of(macs, number) for number, macs in enumerate((16, 10, 15, 14, 21, 20), 1)]
    found = [[each.cost.forward_macs for each in group] for group in groups(sizes, 5.0)]
    assert found == [[10, 14, 15], [16, 20, 21]]


@pytest.mark.slow
def test_a_group_is_drawn_first_and_then_a_route_of_it() -> None:
    made = make(VIT, "snnetv2", warmup=0, initialise="none", rank=2)
    made.prepare(made.initial(1), None, Moment(1, 8))
    fits = {f"device-{k:03d}": made.offers() for k in range(350)}
    given = made.assign(fits, Moment(1, 8, 1))
    counts = Counter(each.spec.options.route for each in given.values())
    assert [len(group) for group in groups(made.offers(), made._gap)] == [1, 3, 3, 1]
    # 8 routes in 4 groups: an anchor is drawn once in 4 times, not once in 8.
    assert 65 < counts[1] < 110
    assert 65 < counts[2] < 110


@pytest.mark.slow
def test_the_server_draws_routes_as_for_a_device_that_all_fit(monkeypatch) -> None:
    taken = Counter[str]()

    def run(module: Stitched, route: Route, x: Tensor) -> Tensor:
        taken[str(route)] += 1
        return x.new_zeros(len(x), 4, requires_grad=True)

    monkeypatch.setattr(EveryRoute, "run", run)
    # In 300 steps an anchor is one of 9 routes; by the rule of the second version it is one of 4 groups alone.
    for method, options, low, high in (("snnet", {}, 17, 50), ("snnetv2", {"rank": 2}, 53, 97)):
        made = make(VIT, method, warmup=0, initialise="none", **options)
        state = made.prepare(made.initial(1), None, Moment(1, 8))
        taken.clear()
        made.learn(state, proxy(VIT), TrainConfig(epochs=25, batch_size=2), Moment(1, 8, 3))
        assert all(low <= taken[str(route)] <= high for route in made.family.routes[:2])
