"""A training loop of a user's own, as a device calls it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import own_fits
import pytest
import torch
from agents import MODEL, examples, states, task
from distributions import install

from diastole.client.training import train
from diastole.models import allowed
from diastole.models.allowed import FITS, allow, give
from diastole.models.errors import ModelError, StoppedError
from diastole.models.methods.registry import build
from diastole.models.methods.widths.fjord import spec_of
from diastole.models.state import State, state_of
from diastole.models.task import Task, Update
from diastole.models.training import Examples, TrainConfig

TRAINING = TrainConfig(epochs=2, batch_size=3, momentum=0.5)


@pytest.fixture(autouse=True)
def _nobody_has_allowed_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed, "_ALLOWED", set())


def by(name: str, given: Task | None = None) -> Task:
    allow(f"own_fits:{name}")
    return replace(given or task(1), training=replace(TRAINING, fit=f"own_fits:{name}"))


def run(work: Task, data: Examples | None = None) -> Update:
    return train(MODEL, work, states()[work.spec], examples() if data is None else data)


def same(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_loop_that_does_what_this_projects_does_gives_its_bits() -> None:
    found, expected = run(by("plain")), run(replace(task(1), training=TRAINING))
    assert same(found.state, expected.state)
    assert found.report.loss == pytest.approx(expected.report.loss)
    assert found.examples == 8


def test_it_is_given_the_methods_own_loss() -> None:
    spec = spec_of(1.0, [0.5, 1.0])
    sent = state_of(build(MODEL, spec))
    plain = Task("t", 1, "one", spec, TRAINING, 5)
    found, expected = (train(MODEL, work, sent, examples()) for work in (by("plain", plain), plain))
    assert same(found.state, expected.state)
    assert not same(found.state, run(replace(task(1), training=TRAINING)).state)


def test_it_is_given_its_task() -> None:
    seen: list[object] = []

    def look(module: object, examples: Examples, local: object) -> float:
        seen.append((module, examples, local))
        return 1.5

    data, work = examples(), replace(task(4), progress=0.25, training=replace(TRAINING, fit=give(look)))
    assert run(work, data).report.loss == 1.5
    ((module, given, local),) = seen  # type: ignore[misc]
    assert torch.equal(given.x, data.x)
    assert torch.equal(given.y, data.y)
    assert module.training
    assert (local.round, local.device, local.seed, local.progress) == (4, "one", 1, 0.25)
    assert local.training == work.training
    assert local.criterion == work.training.criterion
    assert torch.equal(local.labels, data.y)
    assert run(work, Examples(data.x[:0], data.y[:0])).report.loss == 0
    assert len(seen) == 1


def test_its_draws_come_from_the_tasks_seed_and_nothing_it_sets_outlives_it() -> None:
    work, before, threads = by("noisy"), torch.get_rng_state(), torch.get_num_threads()
    one = run(work)
    torch.rand(3)
    other = run(work)
    assert same(one.state, other.state)
    assert not same(one.state, states()[work.spec])
    assert not same(one.state, run(replace(work, seed=2)).state)
    torch.set_rng_state(before)
    run(work)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    # The module of this thread's next task has neither the hook nor the frozen parameters.
    fresh = run(replace(task(1), training=TRAINING))
    assert same(fresh.state, run(by("plain")).state)


def test_it_may_change_its_examples_in_place() -> None:
    def spoil(module: object, examples: Examples, local: object) -> float:
        examples.x.zero_()
        examples.y.fill_(7)
        return 0.0

    data = examples()
    run(replace(task(1), training=replace(TRAINING, fit=give(spoil))), data)
    assert torch.equal(data.x, examples().x)
    assert torch.equal(data.y, examples().y)


def test_without_a_mean_loss_it_is_measured() -> None:
    def nothing(module: object, examples: Examples, local: object) -> None: ...

    def judge(module: torch.nn.Module, examples: Examples, local: object) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(module(examples.x), examples.y)

    none, told = (run(replace(task(1), training=replace(TRAINING, fit=give(f)))) for f in (nothing, judge))
    assert none.report.loss == pytest.approx(told.report.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crash", r"^fit own_fits:crash: RuntimeError: on the$"),
        ("words", r"^fit own_fits:words returns a str; expected the mean loss, or None$"),
        ("replaced", r"^fit own_fits:replaced leaves other parameters than it was given: tensor '.*' is torch.float32"),
        ("half", r"^fit own_fits:half leaves other parameters than it was given: tensor '.*' is torch.float16"),
        ("not_a_function", r"^fit own_fits:not_a_function is a int; expected a function$"),
        ("nowhere", r"^fit own_fits:nowhere cannot be imported: AttributeError: module 'own_fits' has no"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        run(by(name))


def test_what_diverges_is_the_coordinators_to_judge() -> None:
    found = run(by("diverge"))
    assert math.isnan(found.report.loss)
    assert all(tensor.isnan().all() for tensor in found.state.values())


def test_a_device_imports_only_what_its_owner_has_allowed() -> None:
    with pytest.raises(
        ModelError, match=r"^fit own_fits:plain would be imported, .* say --allow-factory own_fits:plain"
    ):
        run(replace(task(1), training=replace(TRAINING, fit="own_fits:plain")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('"fit": "mine"', """fit: expected "package.module:function", not 'mine'"""),
        ('"fit": "a b:c"', """fit: expected "package.module:function", not 'a b:c'"""),
        ('"fit": "own_fits:plain", "augment": ["flip"]', "changes examples itself; leave out augment or fit"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(settings: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        TrainConfig.from_json(f"{{{settings}}}")
    assert str(caught.value).endswith(message)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(
        tmp_path, "own_fits_package", "diastole.fits", {"theirs": "own_fits:plain", "none": "own_fits:not_a_function"}
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(FITS, "_loaded", {})
    FITS.__dict__.pop("_others", None)
    yield
    FITS.__dict__.pop("_others", None)


@pytest.mark.usefixtures("installed")
def test_an_installed_package_brings_one_by_name() -> None:
    expected = run(by("plain"))
    assert FITS["theirs"] is own_fits.plain
    found = run(replace(task(1), training=replace(TRAINING, fit="theirs")))
    assert same(found.state, expected.state)
    with pytest.raises(ModelError, match="fit 'none' is a int; expected a Callable"):
        run(replace(task(1), training=replace(TRAINING, fit="none")))
    with pytest.raises(ModelError, match=r"not 'mine'; installed packages bring none, theirs$"):
        TrainConfig.from_json('{"fit": "mine"}')


def test_a_loop_of_ones_own_is_stopped_at_its_next_forward_pass() -> None:
    work, asked = by("plain"), []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) == 2

    with pytest.raises(StoppedError):
        train(MODEL, work, states()[work.spec], examples(), stopped=stopped)
    assert len(asked) == 2
    assert same(run(work).state, run(by("plain")).state)
