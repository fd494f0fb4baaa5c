"""What an agent does not send, and how it encodes what it does, against a real coordinator."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from agents import MODEL, SPEC, Agent, examples, serve, states, task
from distributions import install
from lossy import Half

from diastole.client import agent, speeds
from diastole.client.budget import Budget
from diastole.client.connection import Connection
from diastole.client.keeper import Keeper, key_of
from diastole.client.measured import Measured
from diastole.client.offer import read_offer
from diastole.client.sources.source import Fixed
from diastole.client.statefolder import StateFolder
from diastole.client.terms import Progress, Terms
from diastole.client.training import CPU, train
from diastole.models import allowed
from diastole.models.kinds import KINDS
from diastole.models.methods.registry import cost_of
from diastole.models.task import Report, Update
from diastole.models.training import TrainConfig
from diastole.proto.codec import CODECS
from diastole.proto.coding import Coding
from diastole.proto.payload import Payload, encode
from diastole.proto.profile import Profile
from diastole.server.events import DeviceJoined
from diastole.server.link import Declined, Failure, Traffic
from diastole.server.wire.exchange import OwedTask, Upload
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.orders import message


@pytest.fixture
def codecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another package, which brings two codecs."""
    points = {"half": "lossy:HALF", "packed": "lossy:PACKED"}
    install(tmp_path, "test_agents_codecs", "diastole.codecs", points)
    monkeypatch.syspath_prepend(tmp_path)
    CODECS.__dict__.pop("_others", None)
    yield
    for name in ("half", "packed"):
        CODECS._loaded.pop(name, None)
    CODECS.__dict__.pop("_others", None)


def hand_out(link: GrpcLink, most: int, closes: float | None) -> None:
    """Open a round of one task by hand, and leave it open."""
    order = OwedTask(task(1), Payload.of(encode(states()[task(1).spec])), most)
    link.hub.hand_out(link._run, [order], {}, closes)


def goes_on(link: GrpcLink, device: Agent) -> Progress:
    """Check that a device that has declined a task does the next one; return what it said when it declined."""
    assert link.wait(1, 60)
    *_, update = link.dispatch([task(9)], states(), None)
    assert isinstance(update, Update)
    link.close()
    device.join()
    assert device.error is None
    declined, *_ = [progress for progress in device.progress if progress.outcome == "declined"]
    return declined


def test_an_update_that_is_larger_than_accepted_is_not_sent_and_is_one_line() -> None:
    told = threading.Event()

    def watch(progress: Progress) -> None:
        if progress.outcome == "declined":
            told.set()

    with closing(serve()) as link:
        device = Agent(link.port, watch=watch)
        assert link.wait(1, 60)
        hand_out(link, 1000, None)
        assert told.wait(60)
        size = len(encode(states()[task(1).spec]))
        assert link.traffic()["one"].bytes_up == 0
        assert link.traffic()["one"].bytes_down == size
        reason = goes_on(link, device).reason
        assert reason == f"the update of r1-one has {size} bytes; the coordinator accepts 1000"


def test_an_update_that_is_too_late_is_not_sent() -> None:
    done = threading.Event()

    def watch(progress: Progress) -> None:
        if progress.outcome:
            done.set()

    with closing(serve()) as link:
        device = Agent(link.port, examples(1000), watch=watch)
        assert link.wait(1, 60)
        # Its deadline is now, and nobody says that it is not needed.
        hand_out(link, 0, time.monotonic())
        assert done.wait(60)
        assert link.owes("one")
        assert link.traffic()["one"].bytes_up == 0
        link.close()
        device.join()
    assert device.error is None
    assert device.progress[-1].outcome == "too late"
    assert device.summary is not None
    assert device.summary.delivered == 0


@pytest.mark.parametrize("name", ["half", "packed"])
@pytest.mark.usefixtures("codecs")
def test_a_codec_of_another_package_is_used_at_both_ends_and_in_both_directions(name: str) -> None:
    codec = CODECS[name]
    with closing(serve(coding=Coding(codec, codec))) as link:
        device = Agent(link.port)
        assert link.wait(1, 60)
        (update,) = link.dispatch([task(1)], states(), None)
        link.close()
        device.join()
    assert device.error is None
    sent = states()[task(1).spec]
    received = codec.decode(codec.encode(sent, 0), sent)
    trained = train(MODEL, task(1), received, examples()).state
    up = trained if codec.exact else {tensor: trained[tensor] - received[tensor] for tensor in sent}
    arrived = codec.decode(codec.encode(up, 0), sent)
    assert isinstance(update, Update)
    for tensor in sent:
        # What the way down lost is not taken for a change.
        expected = arrived[tensor] if codec.exact else sent[tensor] + arrived[tensor]
        assert torch.equal(update.state[tensor], expected)
    plain = train(MODEL, task(1), sent, examples())
    assert all(torch.equal(update.state[tensor], plain.state[tensor]) for tensor in sent) == codec.exact
    traffic = link.traffic()["one"]
    assert traffic.bytes_down == len(codec.encode(sent, 0)) < len(encode(sent))
    assert traffic.bytes_up == len(codec.encode(up, 0))


def test_a_device_changes_examples_as_a_simulated_one_and_refuses_what_they_cannot_have() -> None:
    work = replace(task(1), training=TrainConfig(batch_size=3, augment=("flip", "crop", "mixup:1", "cutmix")))
    with closing(serve()) as link:
        device = Agent(link.port)
        assert link.wait(1, 60)
        (update,) = link.dispatch([work], states(), None)
        wrong = replace(task(2), training=TrainConfig(augment=("jitter",)))
        reason = 'training: augment "jitter" takes windows [channels, length]; examples are [1, 8, 8]'
        declined = Failure("one", reason, faulty=False, declined=Declined.TASK)
        assert list(link.dispatch([wrong], states(), None)) == [declined]
        assert goes_on(link, device).reason == reason
    expected = train(MODEL, work, states()[work.spec], examples())
    assert isinstance(update, Update)
    assert all(torch.equal(update.state[name], tensor) for name, tensor in expected.state.items())
    assert update.report.loss == expected.report.loss


def test_what_a_device_does_not_train_is_downloaded_once_until_it_changes() -> None:
    model, traffic = replace(MODEL, frozen=("stages.0.*",)), []
    sent = states()[SPEC]
    still = {name: tensor for name, tensor in sent.items() if name.startswith("stages.0.")}
    moving = {name: tensor for name, tensor in sent.items() if name not in still}
    with closing(serve(model=model)) as link:
        device = Agent(link.port)
        assert link.wait(1, 60)
        for number, factor in enumerate((1.0, 1.0, 2.0, 1.0), 1):
            state = sent | {name: tensor * factor for name, tensor in still.items()}
            state |= {name: tensor + number for name, tensor in moving.items()}
            (update,) = link.dispatch([task(number)], {SPEC: state}, None)
            expected = train(model, task(number), state, examples())
            assert update.state.keys() == expected.state.keys() == moving.keys()
            assert all(torch.equal(update.state[name], tensor) for name, tensor in expected.state.items())
            traffic.append(link.traffic()["one"])
        link.close()
        device.join()
    assert device.error is None
    cost = cost_of(model, SPEC, TrainConfig())
    assert (cost.untrained, cost.up) == (len(encode(still)), len(encode(moving)))
    downs = [traffic[0].bytes_down, *(after.bytes_down - before.bytes_down for before, after in pairwise(traffic))]
    assert downs == [cost.down, cost.up, cost.down, cost.up]
    assert traffic[-1].bytes_up == 4 * cost.up


def test_a_device_trains_by_a_loop_of_ones_own_only_if_its_owner_has_allowed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allowed, "_ALLOWED", {"own_fits:noisy"})
    work = replace(task(1), training=TrainConfig(fit="own_fits:noisy"))
    with closing(serve()) as link:
        device = Agent(link.port)
        assert link.wait(1, 60)
        (update,) = link.dispatch([work], states(), None)
        other = replace(task(2), training=TrainConfig(fit="own_fits:plain"))
        (failure,) = link.dispatch([other], states(), None)
        reason = goes_on(link, device).reason
        assert failure == Failure("one", reason, faulty=False, declined=Declined.TASK)
    expected = train(MODEL, work, states()[work.spec], examples())
    assert isinstance(update, Update)
    assert all(torch.equal(update.state[name], tensor) for name, tensor in expected.state.items())
    assert reason.startswith("fit own_fits:plain would be imported, which nobody on this machine has allowed")


@dataclass(frozen=True)
class Unheard(Half):
    """A codec that no device knows."""

    name: str = "unheard"


def test_a_device_that_lacks_a_codec_is_sent_everything_exactly_and_the_journal_says_so() -> None:
    joined = []
    with closing(serve(coding=Coding(Unheard(), CODECS["int8"]))) as link:
        link.observe(joined.append)
        device = Agent(link.port)
        assert link.wait(1, 60)
        (update,) = link.dispatch([task(1)], states(), None)
        link.close()
        device.join()
    assert device.error is None
    plain = train(MODEL, task(1), states()[SPEC], examples())
    assert all(torch.equal(update.state[name], tensor) for name, tensor in plain.state.items())
    assert joined[0] == DeviceJoined("one", "test", 8, lacks="unheard")
    size = len(encode(states()[SPEC]))
    assert link.traffic()["one"] == Traffic(size, size)


def test_an_agent_whose_owner_pauses_it_is_given_nothing_until_it_may_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "LOOK_SECONDS", 0.01)
    pause, announced, paused = tmp_path / "pause", [700], threading.Semaphore(0)
    pause.touch()
    terms = Terms(budget=Budget(pause_file=pause), memory=lambda: announced[0])
    with closing(serve()) as link:
        device = Agent(
            link.port, terms=terms, memory=5000, watch=lambda told: told.outcome != "paused" or paused.release()
        )
        # Paused, it does not even join.
        assert paused.acquire(timeout=60)
        assert not link.wait(1, 0.1)
        assert device.progress == [Progress(0, "", "paused", reason=f"{pause} exists")]
        pause.unlink()
        assert link.wait(1, 60)
        assert link.devices()["one"].memory == 700
        pause.touch()
        failed = list(link.dispatch([task(1)], states(), None))
        assert failed == [Failure("one", f"{pause} exists", faulty=False, declined=Declined.PAUSED)]
        assert paused.acquire(timeout=60)
        assert not link.wait(1, 0.1)
        announced[0] = 10**9
        pause.unlink()
        assert link.wait(1, 60)
        assert link.devices()["one"].memory == 10**9
        (update,) = link.dispatch([task(2)], states(), None)
        assert isinstance(update, Update)
        link.close()
        device.join()
    assert device.error is None
    words = [progress.outcome for progress in device.progress]
    assert words == ["paused", "declined", "paused", "", "accepted"]


def test_an_update_that_is_not_answered_is_not_trained_again_after_a_new_start(tmp_path: Path) -> None:
    with closing(StateFolder(tmp_path)) as folder, closing(serve(lease=60.0)) as link:
        terms = Terms(folder, save_seconds=0.0)
        expected = train(MODEL, task(1), states()[SPEC], examples())
        hand_out(link, 1 << 20, None)
        (owed,) = link._exchange.owed("one")
        wanted = message(owed, None, "", "run").train
        keeper = Keeper(folder)
        assert keeper.begin(key_of("run", wanted, examples())) is None
        keeper.finish(Payload.of(encode(expected.state)), Report(8, 0.125, 3.5))
        device = Agent(link.port, terms=terms)
        upload = link._outcomes.get(timeout=60)
        assert isinstance(upload, Upload)
        assert upload.report == Report(8, 0.125, 3.5)
        assert upload.path.read_bytes() == encode(expected.state)
        link.close()
        device.join()
        assert [progress.outcome for progress in device.progress] == ["accepted"]
        assert folder.names("update", "step") == []


def test_a_device_reads_how_many_threads_its_tier_may_have() -> None:
    whole = Payload.of(encode(states()[task(1).spec]))
    wanted = message(OwedTask(replace(task(1), threads=3), whole, 0), None, "accuracy", "").train
    assert read_offer(wanted, "one", MODEL, examples(), None)[0].threads == 3


def test_an_agent_says_as_it_joins_how_fast_it_trains_what_it_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = Measured(1e9, dict.fromkeys(KINDS, 2e9), 1.0)
    with closing(serve()) as link:
        threads = Budget().most_threads
        for models in ((), (MODEL,)):
            speeds._keep(speeds._name("reference", threads, "cpu", models), found)
            found = replace(found, speeds=dict.fromkeys(KINDS, 3e9))
        device = Agent(link.port, terms=Terms(measures=True))
        assert link.wait(1, 60)
        assert set(link.devices()["one"].speeds.values()) == {3e9}
        # It is no news that it would have to join again for.
        *_, update = link.dispatch([task(1)], states(), None)
        assert isinstance(update, Update)
    device.join()
    assert device.error is None


def test_what_passes_beside_tensors_counts_unless_the_budget_has_it_already() -> None:
    order, data = task(1), Fixed(examples())
    passing = cost_of(MODEL, SPEC, replace(order.training, batch_size=8)).passing

    def counted(memory: int | None, terms: Terms) -> int | None:
        connection = Connection("127.0.0.1:1", "one", Profile("test", 8, memory))
        return agent._Worker(connection, data, print, "reference", CPU, terms)._memory(MODEL, order, examples())

    assert counted(1000, Terms()) == 1000 + passing
    assert counted(1000, Terms(memory=lambda: 1000)) == 1000
    assert counted(None, Terms()) is None
