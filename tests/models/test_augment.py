"""Every augmentation does to each example what a slow loop over examples and places does."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from distributions import install
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.augment import AUGMENTATIONS, Mixed, changed, check_augment
from diastole.models.errors import ModelError
from diastole.models.losses import IGNORED, Criterion
from diastole.models.training import Examples, Objective, Step, TrainConfig, fit

N, C, H, W, LENGTH = 7, 2, 9, 16, 24
PLAIN = TrainConfig().criterion


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> Tensor:
    return torch.randn(N, C, H, W, generator=generator(1))


def windows() -> Tensor:
    return torch.randn(N, C, LENGTH, generator=generator(1))


def labels() -> Tensor:
    return torch.randint(5, (N,), generator=generator(2))


def maps() -> Tensor:
    y = torch.randint(5, (N, H, W), generator=generator(2))
    y[0, :3] = IGNORED
    return y


def run(name: str, x: Tensor, y: Tensor, criterion: Criterion = PLAIN) -> tuple[Tensor, Tensor, Criterion]:
    before = x.clone(), y.clone()
    found = changed([name], x, y, criterion, generator())
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    return found


def beta(alpha: float, draws: torch.Generator) -> float:
    return Random(int(torch.randint(1 << 62, (), generator=draws))).betavariate(alpha, alpha)


@pytest.mark.parametrize(("name", "share"), [("flip", 0.5), ("flip:0.9", 0.9), ("flip:0", 0.0), ("flip:1", 1.0)])
def test_flip(name: str, share: float) -> None:
    x, y = images(), maps()
    found, along, criterion = run(name, x, y)
    chosen = torch.rand(N, generator=generator()) < share
    for i in range(N):
        for column in range(W):
            source = W - 1 - column if chosen[i] else column
            assert torch.equal(found[i, :, :, column], x[i, :, :, source])
            assert torch.equal(along[i, :, column], y[i, :, source])
    assert criterion is PLAIN


@pytest.mark.parametrize(("name", "share"), [("crop", 1 / 8), ("crop:0.5", 0.5), ("crop:0", 0)])
def test_crop(name: str, share: float) -> None:
    x, y = images(), maps()
    found, along, _ = run(name, x, y)
    draws, (high, wide) = generator(), (round(share * H), round(share * W))
    rows = torch.randint(-high, high + 1, (N, 1), generator=draws)
    columns = torch.randint(-wide, wide + 1, (N, 1), generator=draws)
    for i in range(N):
        top, left = high + int(rows[i]), wide + int(columns[i])
        for whole, part in ((x[i], found[i]), (y[i][None].float(), along[i][None].float())):
            padded = F.pad(whole, (wide, wide, high, high), mode="reflect")
            assert torch.equal(part, padded[:, top : top + H, left : left + W])
    assert share == 0 or not torch.equal(found, x)


@pytest.mark.parametrize(("name", "side"), [("cutout", 4), ("cutout:0.1", 1), ("cutout:1", 9)])
def test_cutout(name: str, side: int) -> None:
    x = images()
    found, along, _ = run(name, x, maps())
    draws = generator()
    rows, columns = (torch.randint(size, (N, 1), generator=draws) for size in (H, W))
    for i in range(N):
        top, left = int(rows[i]) - side // 2, int(columns[i]) - side // 2
        for row in range(H):
            for column in range(W):
                hidden = top <= row < top + side and left <= column < left + side
                assert torch.equal(found[i, :, row, column], torch.zeros(C) if hidden else x[i, :, row, column])
    assert torch.equal(along, maps())


@pytest.mark.parametrize(("name", "alpha"), [("mixup", 0.2), ("mixup:1", 1.0)])
@pytest.mark.parametrize("make", [images, windows])
def test_mixup(name: str, alpha: float, make: Callable[[], Tensor]) -> None:
    x, y = make(), labels()
    found, first, criterion = run(name, x, y)
    draws = generator()
    share, order = beta(alpha, draws), torch.randperm(N, generator=draws)
    for i in range(N):
        torch.testing.assert_close(found[i], share * x[i] + (1 - share) * x[order[i]])
    assert torch.equal(first, y)
    assert isinstance(criterion, Mixed)
    ((rest, other),) = criterion.others
    assert rest == pytest.approx(1 - share)
    assert torch.equal(other, y[order])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dense", [False, True])
def test_cutmix(seed: int, dense: bool) -> None:
    x, y = images(), maps() if dense else labels()
    found, along, criterion = changed(["cutmix"], x, y, PLAIN, generator(seed))
    draws = generator(seed)
    side = (1 - beta(1.0, draws)) ** 0.5
    centre = [int(torch.randint(size, (1, 1), generator=draws)) for size in (H, W)]
    order = torch.randperm(N, generator=draws)
    first = [at - round(side * size) // 2 for at, size in zip(centre, (H, W), strict=True)]
    inside = torch.zeros(H, W, dtype=torch.bool)
    for row in range(H):
        for column in range(W):
            inside[row, column] = first[0] <= row < first[0] + round(side * H) and first[1] <= column < first[
                1
            ] + round(side * W)
    assert inside.any()
    for i in range(N):
        assert torch.equal(found[i], torch.where(inside, x[order[i]], x[i]))
        if dense:
            assert torch.equal(along[i], torch.where(inside, y[order[i]], y[i]))
    if dense:
        assert criterion is PLAIN
    else:
        assert isinstance(criterion, Mixed)
        assert torch.equal(along, y)
        assert torch.equal(criterion.others[0][1], y[order])
        assert criterion.others[0][0] == pytest.approx(float(inside.float().mean()))


@pytest.mark.parametrize(("name", "sigma"), [("jitter", 0.05), ("jitter:2", 2.0)])
def test_jitter(name: str, sigma: float) -> None:
    x = windows()
    x[0, 0] = 3.0
    found, _, _ = run(name, x, labels())
    noise = torch.randn(N, C, LENGTH, generator=generator())
    for i in range(N):
        for c in range(C):
            spread = ((x[i, c] - x[i, c].mean()) ** 2).mean().sqrt()
            torch.testing.assert_close(found[i, c], x[i, c] + sigma * spread * noise[i, c])
    assert torch.equal(found[0, 0], x[0, 0])


def test_scaling() -> None:
    x = windows()
    found, _, _ = run("scaling", x, labels())
    factors = torch.randn(N, C, 1, generator=generator())
    for i in range(N):
        for c in range(C):
            torch.testing.assert_close(found[i, c], (1 + 0.1 * float(factors[i, c])) * x[i, c])


@pytest.mark.parametrize(("name", "most"), [("shift", 3), ("shift:0.5", 12)])
def test_shift(name: str, most: int) -> None:
    x, y = windows(), torch.randint(5, (N, LENGTH), generator=generator(2))
    found, along, _ = run(name, x, y)
    steps = torch.randint(-most, most + 1, (N, 1), generator=generator())
    assert len(set(steps.flatten().tolist())) > 2
    for i in range(N):
        assert torch.equal(found[i], x[i].roll(int(steps[i]), -1))
        assert torch.equal(along[i], y[i].roll(int(steps[i]), -1))


LOSSES = {
    "classes": (TrainConfig(smoothing=0.1, class_weights=(1.0, 2.0, 0.5, 1.0, 3.0)), labels(), (N, 5)),
    "maps": (TrainConfig(), maps(), (N, 5, H, W)),
    "many": (TrainConfig(loss="multi-label"), labels()[:, None].eq(torch.arange(5)).float(), (N, 5)),
    "values": (TrainConfig(loss="huber"), torch.randn(N, 3, generator=generator()), (N, 3)),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_of_mixed_examples_is_the_sum_of_those_of_all_targets(kind: str) -> None:
    config, y, shape = LOSSES[kind]
    outputs, x = torch.randn(shape, generator=generator(5)), images()
    _, first, criterion = changed(["mixup:1", "cutmix", "flip"], x, y, config.criterion, generator(9))
    assert isinstance(criterion, Mixed)
    assert not criterion.asked
    shares = [1 - sum(share for share, _ in criterion.others), *(share for share, _ in criterion.others)]
    # A box of a map is put in with its classes, so it needs no share of the loss.
    assert len(shares) == (2 if kind == "maps" else 4)
    expected = torch.zeros(N)
    for share, target in zip(shares, [first, *(other for _, other in criterion.others)], strict=True):
        assert 0 < share < 1
        for i in range(N):
            expected[i] += share * config.criterion.each(outputs[i : i + 1], target[i : i + 1])[0]
    torch.testing.assert_close(criterion.each(outputs, first), expected)
    torch.testing.assert_close(criterion.mean(outputs, first), expected.mean())
    assert criterion.asked
    with pytest.raises(ModelError, match="the loss of 2 examples of a mixed batch was asked for"):
        criterion.mean(outputs[:2], first[:2])


def test_two_mixtures_are_the_cross_entropy_with_the_mixed_shares_of_classes() -> None:
    x, y = images(), labels()
    _, first, criterion = changed(["mixup:1", "cutmix"], x, y, PLAIN, generator(9))
    draws, soft = generator(9), F.one_hot(y, 5).double()
    share = beta(1.0, draws)
    soft = share * soft + (1 - share) * soft[torch.randperm(N, generator=draws)]
    assert isinstance(criterion, Mixed)
    box = criterion.others[-1][0] / (1 - share)
    beta(1.0, draws), torch.randint(H, (1, 1), generator=draws), torch.randint(W, (1, 1), generator=draws)
    soft = (1 - box) * soft + box * soft[torch.randperm(N, generator=draws)]
    outputs = torch.randn(N, 5, generator=generator(5))
    torch.testing.assert_close(criterion.mean(outputs, first), F.cross_entropy(outputs, soft.float()))


def trained(module: nn.Module, seed: int = 0, y: Tensor | None = None, **settings: object) -> Tensor:
    config = TrainConfig(epochs=2, batch_size=3, **settings)  # type: ignore[arg-type]
    fit(module, Examples(images(), labels() if y is None else y), config, generator(seed), 0.5, generator(seed + 100))
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def net() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, 5))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.01)
    return module


def test_changes_come_from_a_generator_of_their_own_and_leave_the_order_of_the_examples() -> None:
    plain = trained(net())
    assert torch.equal(trained(net(), augment=("flip:0", "crop:0")), plain)
    augment = ("flip", "crop", "cutout", "mixup", "cutmix")
    one, other = trained(net(), augment=augment), trained(net(), augment=augment)
    assert torch.equal(one, other)
    assert not torch.equal(one, plain)
    assert not torch.equal(trained(net(), 1, augment=augment), one)
    # The server trains without a generator of changes.
    server = net()
    fit(server, Examples(images(), labels()), TrainConfig(epochs=2, batch_size=3, augment=augment), generator(0), 0.5)
    assert torch.equal(torch.cat([parameter.detach().flatten() for parameter in server.parameters()]), plain)


class Own(Objective):
    """Trains by a loss of its own, which asks for the run's or not."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.net, self.asks = net(), asks

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        outputs = self.net(x)
        return step.criterion.mean(outputs, y) if self.asks else F.cross_entropy(outputs, y)


def test_an_objective_that_never_asks_for_the_runs_loss_is_not_trained_on_mixed_examples() -> None:
    assert torch.equal(trained(Own(asks=True), augment=("mixup",)), trained(net(), augment=("mixup",)))
    assert torch.equal(trained(Own(asks=False), augment=("flip",)), trained(net(), augment=("flip",)))
    with pytest.raises(ModelError, match=r"^Own.loss does not ask step.criterion, .*; leave mixup and cutmix out"):
        trained(Own(asks=False), augment=("mixup",))


def test_what_learns_nothing_is_shown_examples_as_they_are() -> None:
    seen: list[Tensor] = []

    class Counting(Own):
        learns = False

        def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
            seen.append(x)
            return super().loss(x, y, step)

    trained(Counting(asks=True), augment=("mixup", "crop"))
    assert {image.numpy().tobytes() for x in seen for image in x} == {image.numpy().tobytes() for image in images()}


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (
            "warp",
            "augment 'warp': must be one of flip, crop, cutout, mixup, cutmix, jitter, scaling, shift, not 'warp'",
        ),
        ("flip:", "augment 'flip:': could not convert string to float: ''"),
        ("flip:much", "augment 'flip:much': could not convert string to float: 'much'"),
        ("crop:0.6", "augment 'crop:0.6': the strength must be from 0 to 0.5"),
        ("mixup:nan", "augment 'mixup:nan': the strength must be from 0.01 to 100"),
    ],
)
def test_a_name_or_strength_that_is_not_accepted_is_one_line(augment: str, message: str) -> None:
    text = TrainConfig().to_json()[:-1] + f', "augment": ["{augment}"]}}'
    with pytest.raises(ModelError) as caught:
        TrainConfig.from_json(text)
    assert str(caught.value).endswith(message)
    assert TrainConfig.from_json(text.replace(augment, "mixup:0.4")).augment == ("mixup:0.4",)


IMAGE, WINDOW = (C, H, W), (C, LENGTH)


@pytest.mark.parametrize(
    ("augment", "shape", "y", "message"),
    [
        ("flip", WINDOW, (N,), "images [channels, height, width]; examples are [2, 24]"),
        ("cutmix", (64,), (N,), "images [channels, height, width]; examples are [64]"),
        ("jitter", IMAGE, (N,), "windows [channels, length]; examples are [2, 9, 16]"),
        ("crop", IMAGE, (N, 4, 4), "examples [2, 9, 16]; targets [7, 4, 4] do not have the same places"),
        ("cutmix", IMAGE, (N, 3, 4, 4), "examples [2, 9, 16]; targets [7, 3, 4, 4] do not have the same places"),
        ("shift", WINDOW, (N, 12), "examples [2, 24]; targets [7, 12] do not have the same places"),
        ("cutout", IMAGE, (N, 4, 4), ""),
        ("flip", IMAGE, (N, H, W), ""),
        ("crop", IMAGE, (N, 3, H, W), ""),
        ("crop", IMAGE, (N, H), ""),
        ("shift", WINDOW, (N, LENGTH), ""),
        ("mixup", WINDOW, (N, 12), ""),
        ("mixup", (64,), (N,), ""),
    ],
)
def test_examples_and_targets_that_an_augmentation_cannot_have_are_one_line(
    augment: str, shape: tuple[int, ...], y: tuple[int, ...], message: str
) -> None:
    def check(tokens: bool = False) -> None:
        check_augment("training", ("mixup", augment), PLAIN, shape, torch.zeros(y, dtype=torch.int64), tokens)

    if message:
        with pytest.raises(ModelError, match=rf'^training: augment "{augment}" (takes|moves)[^\n]*$') as caught:
            check()
        assert str(caught.value).endswith(message)
    else:
        check()
    with pytest.raises(ModelError, match=r'augment "mixup": examples are tokens'):
        check(tokens=True)


def test_values_that_are_as_many_as_a_window_has_places_are_asked_about() -> None:
    mse = TrainConfig(loss="mse").criterion
    check_augment("training", ["shift"], mse, WINDOW, torch.zeros(N, 3))
    check_augment("training", ["shift"], mse, WINDOW, torch.zeros(N, 1, LENGTH))
    check_augment("training", ["jitter", "scaling"], mse, WINDOW, torch.zeros(N, LENGTH))
    with pytest.raises(ModelError, match=r"targets \[7, 24\] could have the same places or not"):
        check_augment("training", ["shift"], mse, WINDOW, torch.zeros(N, LENGTH))


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_examples_may_live_on_another_device_than_the_draws(name: str) -> None:
    # "meta" refuses, as a GPU does, what mixes devices.
    x = (images() if AUGMENTATIONS[name].axes != 1 else windows()).to("meta")
    found, _, _ = changed([name], x, labels().to("meta"), PLAIN, generator())
    assert (found.device.type, found.shape, found.dtype) == ("meta", x.shape, x.dtype)


MINE = """
from dataclasses import replace

from diastole.models.augment import Augmentation


def darken(batch, strength, draws):
    return replace(batch, x=batch.x * strength)


def shrink(batch, strength, draws):
    return replace(batch, x=batch.x[:1])


DARK, SMALL = Augmentation(darken, 0.5, 0, 1), Augmentation(shrink, 0.5, 0, 1)
BROKEN = Augmentation(lambda batch, strength, draws: 1 / 0, 0.5, 0, 1)
"""


def test_augmentations_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {name: f"mine_augment:{name.upper()}" for name in ("dark", "small", "broken")}
    install(tmp_path, "mine_augment", "diastole.augmentations", points, {"mine_augment": MINE})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(AUGMENTATIONS, "_loaded", {})
    AUGMENTATIONS.__dict__.pop("_others", None)
    try:
        assert TrainConfig(augment=("dark:0.25",)).augment == ("dark:0.25",)
        assert torch.equal(run("dark:0.25", images(), labels())[0], images() * 0.25)
        with pytest.raises(
            ModelError, match=r"^augment 'small' gives examples \[1, 2, 9, 16\]; expected \[7, 2, 9, 16\]"
        ):
            run("small", images(), labels())
        with pytest.raises(ModelError, match=r"^augment 'broken': examples .*: ZeroDivisionError: division by zero$"):
            run("broken", images(), labels())
    finally:
        AUGMENTATIONS.__dict__.pop("_others", None)
