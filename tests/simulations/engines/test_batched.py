"""The batched engine trains every device as the loop does."""

import threading
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from diastole.experiments.errors import ExperimentError
from diastole.models.batches import batches
from diastole.models.methods.registry import build
from diastole.models.methods.stitching.stitched import Part
from diastole.models.methods.stitching.stitched import spec_of as part_of
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.server.link import Failure
from diastole.simulations.devices import Device, make_federation
from diastole.simulations.engines import batched, stacked
from diastole.simulations.engines.batched import BatchedLink
from diastole.simulations.engines.card import Card, Pool
from diastole.simulations.engines.loop import LoopLink
from diastole.simulations.engines.schedule import Schedule
from diastole.simulations.engines.stacked import group, grouped, vmapped
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

IMAGES = ModelConfig(name="cnn", input_shape=(1, 10, 10), classes=4, widths=(8, 16))
SERIES = ModelConfig(name="cnn", input_shape=(3, 24), classes=4, widths=(8, 16))
RESNET = ModelConfig(name="resnet", input_shape=(3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1))
VIT = ModelConfig(name="vit", input_shape=(1, 8, 8), classes=4, widths=(16,), blocks=(2,))
WIDTH = spec_of(0.5)
# With batches of 8: whole batches, a partial one, fewer than a batch, a single example, none.
COUNTS = (16, 27, 5, 1, 0, 8)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def federation(model: ModelConfig, counts: Sequence[int] = COUNTS) -> dict[str, Device]:
    draws, devices = torch.Generator().manual_seed(7), {}
    for k, count in enumerate(counts):
        x = torch.randn(count, *model.input_shape, generator=draws)
        y = torch.randint(model.classes, (count,), generator=draws)
        devices[f"device-{k:02d}"] = Device(Profile("any", count), Examples(x, y))
    return devices


def tasks(
    model: ModelConfig, devices: Sequence[str], training: TrainConfig, spec: SubModelSpec = WIDTH
) -> tuple[list[Task], dict[SubModelSpec, State]]:
    state = {name: tensor.detach() for name, tensor in _sub_model(model, spec).items()}
    found = [Task(f"r1-{name}", 1, name, spec, training, 100 + k) for k, name in enumerate(devices)]
    return found, {spec: state}


def _sub_model(model: ModelConfig, spec: SubModelSpec) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(build(model, spec).named_parameters())


def updates(outcomes: object) -> dict[str, Update]:
    found = {}
    for outcome in outcomes:  # type: ignore[attr-defined]
        assert isinstance(outcome, Update)
        found[outcome.device] = outcome
    return found


def assert_same(found: dict[str, Update], expected: dict[str, Update], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        assert found[name].examples == update.examples
        assert found[name].report.loss == pytest.approx(update.report.loss, rel=10 * rtol, abs=atol)
        for key, tensor in update.state.items():
            torch.testing.assert_close(found[name].state[key], tensor, rtol=rtol, atol=atol)


MODELS = {"images": IMAGES, "series": SERIES, "resnet": RESNET}
TRAININGS = {
    "plain": TrainConfig(epochs=2, batch_size=8, momentum=0.0),
    "momentum": TrainConfig(epochs=3, batch_size=8, momentum=0.9, weight_decay=1e-2),
    "adam": TrainConfig(epochs=2, batch_size=8, optimiser="adam", learning_rate=1e-3, weight_decay=1e-2),
    "one batch": TrainConfig(epochs=1, batch_size=64),
}
# Any two of training, model and program meet in one of those that are not slow.
COMBINATIONS = [
    pytest.param(
        MODELS[model],
        TRAININGS[training],
        program,
        marks=[] if (i + j + k) % 2 == 0 else pytest.mark.slow,
        id=f"{training}-{model}-{program}",
    )
    for (i, model), (j, training), (k, program) in product(
        enumerate(MODELS), enumerate(TRAININGS), enumerate(["grouped", "vmapped"])
    )
]


@pytest.mark.parametrize(("model", "training", "program"), COMBINATIONS)
def test_results_are_the_loops(
    model: ModelConfig, training: TrainConfig, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program == "vmapped":
        monkeypatch.setattr(stacked, "group", lambda module: None)
    devices = federation(model)
    work = tasks(model, list(devices), training)
    expected = updates(LoopLink(model, devices).dispatch(*work, None))
    found = updates(BatchedLink(model, devices, workers=2).dispatch(*work, None))
    assert_same(found, expected)


@pytest.mark.parametrize("spec", [WIDTH, part_of("snnetv2", Part((0.5, 1.0), route=3, rank=2))])
def test_transformers_are_trained_as_in_the_loop(spec: SubModelSpec) -> None:
    devices = federation(VIT)
    work = tasks(VIT, list(devices), TrainConfig(epochs=2, batch_size=8, weight_decay=1e-2), spec)
    expected = updates(LoopLink(VIT, devices).dispatch(*work, None))
    assert_same(updates(BatchedLink(VIT, devices, workers=2).dispatch(*work, None)), expected)


def test_two_runs_give_the_same_bits() -> None:
    devices = federation(IMAGES)
    work = tasks(IMAGES, list(devices), TrainConfig(epochs=2, batch_size=8))
    one, other = ([*BatchedLink(IMAGES, devices, workers=2).dispatch(*work, None)] for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert isinstance(a, Update)
        assert isinstance(b, Update)
        assert a.device == b.device
        assert a.report.loss == b.report.loss
        assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)


def test_chunks_follow_the_memory_and_change_no_result() -> None:
    devices = federation(IMAGES, [8] * 6)
    training = TrainConfig(batch_size=8)
    whole, narrow = BatchedLink(IMAGES, devices, workers=1), BatchedLink(IMAGES, devices, workers=1, budget=1)
    assert whole.chunk(WIDTH, training, 6) == 6
    assert narrow.chunk(WIDTH, training, 6) == 1
    assert BatchedLink(IMAGES, devices, workers=2).chunk(WIDTH, training, 6) == 3
    work = tasks(IMAGES, list(devices), training)
    assert_same(updates(whole.dispatch(*work, None)), updates(narrow.dispatch(*work, None)))


def test_batches_are_those_of_fit() -> None:
    examples = Examples(torch.arange(5.0), torch.arange(5))
    schedule = Schedule.draw([3, 4], [5, 1], TrainConfig(epochs=2, batch_size=2))
    draws = generator(3)
    expected = [batch.y.tolist() for _ in range(2) for batch in batches(examples, 2, draws)]
    weighted = [
        [row for row, weight in zip(rows, weights, strict=True) if weight]
        for rows, weights in zip(schedule.index[:, :, 0].tolist(), schedule.weight[:, :, 0].tolist(), strict=True)
    ]
    assert weighted == expected
    assert schedule.sizes == [(2, 2), (2, 2), (1, 1), (1, 2), (1, 2), (1, 1)]
    torch.testing.assert_close(schedule.counted[:, 0], torch.tensor([0, 0, 0, 0.4, 0.4, 0.2]))
    assert schedule.index[0, :, 1].tolist() == [5, 5]


def test_a_batch_of_one_joins_the_one_before_where_examples_see_each_other() -> None:
    examples = Examples(torch.arange(7.0), torch.arange(7))
    schedule = Schedule.draw([3, 4], [7, 5], TrainConfig(epochs=2, batch_size=3), least=2)
    for k, part in enumerate([examples, examples.part(0, 5)]):
        draws = generator(3 + k)
        expected = [batch.y.tolist() for _ in range(2) for batch in batches(part, 3, draws, 2)]
        found = [
            [row - 7 * k for row, weight in zip(rows, weights, strict=True) if weight]
            for rows, weights in zip(schedule.index[:, :, k].tolist(), schedule.weight[:, :, k].tolist(), strict=True)
        ]
        assert found == expected
    assert schedule.counts == [[3, 3], [4, 2], [3, 3], [4, 2]]


class Attentive(nn.Module):
    """Layers that could be grouped, under a forward that could not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.classifier((x * x.mean((2, 3), keepdim=True).softmax(1)).mean((2, 3)))


class Embedded(nn.Module):
    """A layer that has no grouped form."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(10)
        self.classifier = nn.Linear(100, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(x).flatten(1))


@pytest.mark.parametrize("kind", [Attentive, Embedded])
def test_what_cannot_be_grouped_is_vmapped(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, "build", lambda *_: kind())
    run = stacked.program(IMAGES, WIDTH, torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        stack = {name: torch.randn(3, *p.shape) for name, p in kind().named_parameters()}
        x, y, weight = torch.randn(5, 3, *IMAGES.input_shape), torch.randint(4, (5, 3)), torch.full((5, 3), 0.2)
    with torch.device("meta"):
        expected, losses = vmapped(kind(), TrainConfig().criterion)(stack, x, y, weight)
    found, mine = run(stack, x, y, weight)
    torch.testing.assert_close(mine, losses)
    torch.testing.assert_close(found, expected)


def test_grouped_and_vmapped_programs_agree() -> None:
    module, grouping = build(RESNET), group(build(RESNET))
    assert grouping is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        stack = {name: torch.randn(3, *p.shape) * 0.2 for name, p in module.named_parameters()}
        x, y, weight = torch.randn(5, 3, *RESNET.input_shape), torch.randint(4, (5, 3)), torch.rand(5, 3)
    (found, losses), (expected, others) = (
        grouped(grouping, TrainConfig().criterion)(stack, x, y, weight),
        vmapped(module, TrainConfig().criterion)(stack, x, y, weight),
    )
    torch.testing.assert_close(losses, others, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_impossible_task_is_a_failure_of_its_devices_alone() -> None:
    devices = federation(IMAGES)
    training = TrainConfig(batch_size=8)
    good, states = tasks(IMAGES, list(devices)[:2], training)
    bad, spoiled = tasks(IMAGES, ["device-02"], training, spec_of(1.0))
    poisoned = {
        spec: {name: torch.full_like(t, torch.nan) for name, t in state.items()} for spec, state in spoiled.items()
    }
    outcomes = list(BatchedLink(IMAGES, devices).dispatch([*good, *bad], states | poisoned, None))
    assert [(o.device, o.faulty) for o in outcomes if isinstance(o, Failure)] == [("device-02", True)]
    assert sum(isinstance(outcome, Update) for outcome in outcomes) == 2


def test_closing_and_interrupting_end_the_work() -> None:
    devices = federation(IMAGES, [8] * 8)
    work = tasks(IMAGES, list(devices), TrainConfig(batch_size=8))
    link = BatchedLink(IMAGES, devices, workers=1, budget=1)
    running, threads = link.dispatch(*work, None), threading.active_count()
    assert isinstance(next(running), Update)
    running.close()
    assert threading.active_count() == threads
    assert len(updates(link.dispatch(*work, None))) == 8
    link.interrupt()
    assert list(link.dispatch(*work, None)) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["width", "conv", "fiarse"])
def test_a_federation_agrees_with_the_loop(method: str) -> None:
    document = {
        "method": method,
        "data": {"proxy": 60},
        "rounds": {"count": 1},
        "methods": {"conv": {"epochs": 1, "weight_epochs": 1}},
        "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 4, "width": 0.25}},
    }
    expected = simulate(make_federation(Simulation.parse(document, "test")))
    found = simulate(make_federation(Simulation.parse(document | {"engine": "batched"}, "test")))
    for name, tensor in expected.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-4, atol=1e-5)
    assert found.rounds[0].updates == expected.rounds[0].updates
    assert found.rounds[0].bytes_up == expected.rounds[0].bytes_up


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line() -> None:
    with pytest.raises(ExperimentError, match='use "cpu"'):
        BatchedLink(IMAGES, federation(IMAGES), device="cuda")


@needs_cuda
@pytest.mark.parametrize("model", [IMAGES, SERIES, RESNET], ids=["images", "series", "resnet"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_gpu_agrees_with_the_loop(model: ModelConfig, optimiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    devices = federation(model)
    training = TrainConfig.from_json(
        f'{{"epochs": 2, "batch_size": 8, "optimiser": "{optimiser}", "learning_rate": 1e-3}}'
    )
    work = tasks(model, list(devices), training)
    expected = updates(LoopLink(model, devices).dispatch(*work, None))
    found = updates(BatchedLink(model, devices, device="cuda").dispatch(*work, None))
    assert_same(found, expected, 1e-3, 1e-4)
    assert all(t.device.type == "cpu" for update in found.values() for t in update.state.values())


def test_memory_that_holds_files_is_there_to_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "meminfo"
    monkeypatch.setattr(batched, "MEMINFO", file)
    chunks = []
    for free, available in ((100, 4000), (3000, 4000), (3000, 7000)):
        file.write_text(f"MemTotal: 24000000 kB\nMemFree: {free} kB\nMemAvailable:   {available} kB\nBuffers: 8 kB\n")
        chunks.append(BatchedLink(IMAGES, {}, workers=1).chunk(WIDTH, TrainConfig(), 1000))
    assert 1 < chunks[0] == chunks[1] < chunks[2] < batched.CPU_CHUNK
    file.write_text("MemTotal: 24000000 kB\n")
    assert BatchedLink(IMAGES, {}, workers=1).chunk(WIDTH, TrainConfig(), 1) == 1


class Recorded:
    """Trains as an agent does, and notes on which torch device everything was."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def __call__(self, model: ModelConfig, task: Task, state: State, examples: Examples) -> Update:
        self.seen += [(name, tensor.device.type) for name, tensor in state.items()]
        self.seen.append(("x", examples.x.device.type))
        trained = {name: torch.zeros(tensor.shape) for name, tensor in state.items()}
        return Update(task, trained, Report(len(examples), 1.0, 0.1))


def test_a_sub_model_without_a_program_is_trained_on_the_device_that_was_asked_for() -> None:
    model = ModelConfig("simple-cnn", (1, 10, 10), 4, (8, 8, 16))
    devices, recorded = federation(model, [8, 8]), Recorded()
    link = BatchedLink(model, devices, workers=1, train=recorded)
    # No GPU here: what is on the meta device is there because it was sent there.
    meta = torch.device("meta")
    card = Card(model, meta, Pool.of({name: item.examples for name, item in devices.items()}, meta))
    work, states = tasks(model, list(devices), TrainConfig(batch_size=8))
    card._programs[WIDTH, work[0].training, ""] = {}
    assert len(link._train_on(card, work, states[WIDTH], lambda: False)) == 2
    assert {where for _, where in recorded.seen} == {"meta"}


@needs_cuda
def test_a_gpu_trains_what_has_no_program_and_gives_it_back_on_the_cpu() -> None:
    model = ModelConfig("simple-cnn", (1, 10, 10), 4, (8, 8, 16))
    devices = federation(model)
    work = tasks(model, list(devices), TrainConfig(epochs=2, batch_size=8))
    expected = updates(LoopLink(model, devices).dispatch(*work, None))
    found = updates(BatchedLink(model, devices, device="cuda").dispatch(*work, None))
    assert found.keys() == expected.keys()
    assert all(t.device.type == "cpu" for update in found.values() for t in update.state.values())
