"""A device's end of the codecs: what it downloads, and what it makes of orders that make no sense."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from agents import SPEC
from torch import Tensor

from diastole.client.coding import Codings
from diastole.client.statefolder import StateFolder
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.proto.coding import Coding
from diastole.proto.payload import Payload, PayloadError
from diastole.proto.versions import MOST_STEPS, Offer, Versions
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb

Fetch = Callable[[common_pb2.ObjectRef], bytes | None]


def state(seed: float) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(0)
    start, step = (torch.randn(4, 40, generator=draws) for _ in range(2))
    return {"w": start + 0.01 * seed * step, "still": torch.ones(300)}


def told(offer: Offer, change: str = "int8") -> pb.TrainTask:
    steps = [pb.Step(base=step.base, change=step.change.ref()) for step in offer.steps]
    coding = pb.Coding(version=offer.version, change=change, steps=steps)
    return pb.TrainTask(model=offer.whole.ref(), codec=offer.codec.name, coding=coding)


class Store:
    """Objects to download, and the sizes of those that were."""

    def __init__(self, *offers: Offer) -> None:
        payloads = [payload for offer in offers for payload in (offer.whole, *(s.change for s in offer.steps))]
        self.objects = {payload.sha256: payload.data for payload in payloads}
        self.moved: list[int] = []

    def __call__(self, ref: common_pb2.ObjectRef) -> bytes | None:
        data = self.objects.get(ref.sha256)
        self.moved.append(len(data or b""))
        return data


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("change", ["int8", "top-k:0.05", "exact"])
def test_a_device_downloads_what_it_lacks_and_all_have_the_same_bits(change: str) -> None:
    versions, always, seldom = Versions(Coding.of("exact", f"delta:{change}")), Codings(), Codings()
    offers = [versions.offer("spec", state(number), number) for number in range(4)]
    store = Store(*offers)
    for number, offer in enumerate(offers):
        before, moved = always.version, len(store.moved)
        found = always.receive(told(offer, change), store, state(0))
        assert found is not None
        assert equal(found, offer.received)
        assert sum(store.moved[moved:]) == offer.bytes_down(before)
        if number in (0, 3):
            again = seldom.receive(told(offer, change), store, state(0))
            assert again is not None
            assert equal(again, offer.received)
    assert store.moved.count(len(offers[0].whole.data)) >= 2
    # The same version again: nothing to download.
    moved = len(store.moved)
    assert always.receive(told(offers[-1], change), store, state(0)) is not None
    assert len(store.moved) == moved
    # What one change leaves out is in the next.
    for number in range(4, 40):
        offer = versions.offer("spec", state(4), number)
    torch.testing.assert_close(offer.received["w"], state(4)["w"], rtol=0, atol=1e-6)


def test_a_device_that_has_been_away_too_long_downloads_the_whole() -> None:
    versions = Versions(Coding.of("exact", "delta:top-k:0.01"))
    offers = [versions.offer("spec", state(number), number) for number in range(MOST_STEPS + 2)]
    assert offers[-1].bytes_down(offers[1].version) == MOST_STEPS * len(offers[1].steps[0].change.data)
    for held in (offers[0].version, "", "unknown"):
        assert offers[-1].bytes_down(held) == len(offers[-1].whole.data)


def test_versions_that_go_on_with_the_memory_of_others_are_those_others() -> None:
    one, other = (Versions(Coding.of("exact", "delta:int8")) for _ in range(2))
    for number in range(3):
        one.offer("a", state(number), number)
    one.offer("b", state(7), 7)
    memory, tensors = one.memory()
    other.resume(memory, {name: tensor.clone() for name, tensor in tensors.items()})
    for spec in "ab":
        mine, theirs = (versions.offer(spec, state(5), 5) for versions in (one, other))
        assert (mine.version, mine.steps) == (theirs.version, theirs.steps)


def test_changes_that_make_no_sense_are_left_for_the_whole() -> None:
    versions, device = Versions(Coding.of("exact", "delta:int8")), Codings()
    first, second = (versions.offer("spec", state(number), number) for number in range(2))
    store = Store(first, second)
    assert device.receive(told(first), store, state(0)) is not None
    for spoilt in (b"", b"nonsense", second.steps[0].change.data[:-1] + b"x"):
        wrong = told(second)
        payload = Payload.of(spoilt)
        wrong.coding.steps[0].change.CopyFrom(payload.ref())
        store.objects[payload.sha256] = spoilt
        kept = device.version
        found = device.receive(wrong, store, state(0))
        assert found is not None
        assert equal(found, second.received)
        device.version, device._held = kept, first.received
    unknown = told(second, "zip")
    assert device.receive(unknown, store, state(0)) is not None
    lying = told(second)
    lying.coding.version = "0" * 64
    with pytest.raises(PayloadError, match=r"^a download is not version '000000000000'"):
        device.receive(lying, store, state(0))


@pytest.mark.parametrize("name", ["int8", "fp16", "top-k:0.1"])
def test_a_download_that_is_not_what_was_ordered_is_one_line(name: str) -> None:
    payload = Payload.of(b"x" * 1000)
    wanted = pb.TrainTask(model=payload.ref(), codec=name)
    with pytest.raises(PayloadError, match=r"^codec .*: payload of 1000 bytes; these tensors take \d+$"):
        Codings().receive(wanted, lambda ref: payload.data, state(0))
    wanted.codec = "zip"
    with pytest.raises(PayloadError, match=r"^unknown codec 'zip'; known: exact, "):
        Codings().receive(wanted, lambda ref: payload.data, state(0))


def test_nothing_is_received_of_a_round_that_is_over() -> None:
    assert Codings().receive(pb.TrainTask(model=Payload.of(b"x").ref()), lambda ref: None, state(0)) is None


def test_what_is_kept_outlives_the_process(tmp_path: Path) -> None:
    versions, folder = Versions(Coding.of("exact", "delta:int8")), StateFolder(tmp_path / "state")
    first, second = (versions.offer("spec", state(number), number) for number in range(2))
    store, wanted = Store(first, second), pb.TrainTask(coding=pb.Coding(update="top-k:0.1"))
    device, never = Codings(folder), Codings()

    def update(device: Codings, number: int) -> bytes:
        work = Task(f"r{number}", number, "one", SPEC, TrainConfig(), number)
        trained = {name: tensor + 0.1 * number * state(number)[name] for name, tensor in state(0).items()}
        return device.send(work, wanted, trained, state(0)).data

    assert device.receive(told(first), store, state(0)) is not None
    for each in (device, never):
        update(each, 1)
    # The update is delivered by the next process.
    again = Codings(folder)
    for each in (again, never):
        each.taken()
    third = Codings(folder)
    assert update(third, 2) == update(again, 2) == update(never, 2) != update(Codings(), 2)
    assert third.version == first.version
    assert equal(third.receive(told(second), store, state(0)) or {}, second.received)
    for name in ("codec-version", "codec-residuals"):
        (tmp_path / "state" / name).write_bytes(b"damaged")
    fresh = Codings(folder)
    assert folder.names("codec") == []
    assert update(fresh, 2) == update(Codings(), 2)
