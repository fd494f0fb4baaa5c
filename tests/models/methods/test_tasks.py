"""Every method on every kind of task: it trains by the run's loss, and what comes back makes a model."""

import math
import re
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from contract import MOMENT, ROWS, WIDTHS, same
from everytask import KINDS
from torch import nn
from torch.nn import functional as F

from diastole.models.accumulator import Accumulator
from diastole.models.errors import ModelError
from diastole.models.losses import LOSSES
from diastole.models.methods.depths.depthfl import spec_of as stages_of
from diastole.models.methods.depths.exits import Exit
from diastole.models.methods.registry import build, make_method
from diastole.models.methods.widths.diastole import Diastole
from diastole.models.methods.widths.diastole import spec_of as nested_of
from diastole.models.metrics import METRICS, title
from diastole.models.networks.registry import Map
from diastole.models.proxy import Proxy
from diastole.models.scoring import Score, evaluate
from diastole.models.state import State, state_of
from diastole.models.task import Report, Task, Update
from diastole.models.training import Step, fit

# Each method on a kind that it treats in a way of its own; every other pair runs with the slow tests.
LIGHT = {
    ("diastole", "pixels"),
    ("diastole", "tokens"),
    ("width", "value"),
    ("conv", "value"),
    ("fjord", "labels"),
    ("fedrolex", "value"),
    ("splitmix", "value"),
    ("ofa", "value"),
}
# What a method cannot do, and what it says.
REFUSED = {
    ("inclusivefl", "pixels"): "cannot end behind block 'fine'.*gives .3, 16, 16.*.3, 8, 8. is needed",
    ("inclusivefl", "field"): "cannot end behind block 'fine'.*gives .1, 16, 16.*.1, 8, 8. is needed",
}
PAIRS = [
    pytest.param(method, kind, id=f"{method}-{kind}", marks=[] if (method, kind) in LIGHT else pytest.mark.slow)
    for method in ROWS
    for kind in KINDS
]


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_method_trains_by_the_runs_loss_and_what_comes_back_makes_a_model(name: str, task: str) -> None:
    kind = KINDS[task]
    if (name, task) in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name, task]):
            make_method(name, kind.model, WIDTHS, kind.training, ROWS[name].options)
        return
    method, examples = make_method(name, kind.model, WIDTHS, kind.training, ROWS[name].options), kind.examples(48)
    proxy, criterion = Proxy(examples.part(0, 32), examples.part(32, 48)), kind.training.criterion

    def judged(module: nn.Module) -> Score:
        return evaluate(module, examples, criterion, (kind.metric,))

    state = method.prepare(method.initial(0), proxy, MOMENT)
    total, sizes = Accumulator(state), method.offers()
    for size in (sizes[0], sizes[-1]):
        module = method.module(size.spec)
        assert size.cost.parameters == sum(parameter.numel() for parameter in module.parameters())
        assert size.cost.training_macs > size.cost.forward_macs > 0
        module.load_state_dict(method.compress(size.spec))
        assert module.eval()(examples.x).numel() == 48 * prod(kind.model.gives)
        before = judged(module).loss
        fit(module, examples, kind.training, torch.Generator().manual_seed(0))
        assert judged(module).loss < before
        total.fold(method.dilate(state_of(module), size.spec), 1.0)
    changes, _ = total.mean()
    method.prepare({key: (tensor + changes[key]).float() for key, tensor in state.items()}, proxy, MOMENT)
    module = method.module(method.whole)
    module.load_state_dict(method.compress(method.whole))
    assert math.isfinite(judged(module).metrics[kind.metric])
    assert not same(method.learn(state, proxy, kind.training, MOMENT), state)


@pytest.mark.parametrize("task", ["tokens", "pixels"])
def test_one_pass_of_diastole_gives_every_width_of_maps_and_sequences(task: str) -> None:
    kind = KINDS[task]
    module = build(kind.model, nested_of(1.0, (0.25, 0.5, 1.0)))
    assert isinstance(module, Diastole)
    assert module.exact
    assert module.bands
    module.load_state_dict(random_state(module))
    examples, step = kind.examples(4), Step(torch.Generator(), criterion=kind.training.criterion)
    apart = [module.at(examples.x, width) for width in module.widths]
    for found, expected in zip(module.logits(examples.x), apart, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected = torch.stack([kind.training.criterion.mean(outputs, examples.y) for outputs in apart]).mean()
    torch.testing.assert_close(module.loss(examples.x, examples.y, step), expected)


@pytest.mark.parametrize("task", [pytest.param(k, marks=[] if k == "value" else pytest.mark.slow) for k in KINDS])
def test_diastole_learns_what_sub_models_say_of_a_proxy_set_without_targets(task: str) -> None:
    kind = KINDS[task]
    method, training = make_method("diastole", kind.model, (1.0, 0.5), kind.training), kind.training
    examples, state, criterion = kind.examples(96), method.initial(0), training.criterion
    bare = Proxy(examples.part(48, 80), examples.part(80, 96)).without_labels()
    method.prepare(state, bare, MOMENT)
    spec = method.whole
    teacher = method.module(spec)
    teacher.load_state_dict(method.compress(spec))
    fit(teacher, examples.part(0, 48), replace(training, epochs=30), torch.Generator().manual_seed(0))
    update = Update(Task("t", 1, "a", spec, training, 0), state_of(teacher), Report(48, 0.0, 1.0))
    assert list(method.weigh([update], MOMENT)) == [(update, 48.0)]
    learned = method.learn(state, bare, replace(training, epochs=20), MOMENT)

    def loss(state: State) -> float:
        method.prepare(state, None, MOMENT)
        module = method.module(spec)
        module.load_state_dict(method.compress(spec))
        return evaluate(module, examples.part(48, 96), criterion, (kind.metric,)).loss

    assert loss(learned) < loss(state)


def test_an_exit_answers_each_position_of_a_sequence_by_itself() -> None:
    kind = KINDS["tokens"]
    module = build(kind.model, stages_of(1.0, 2)).eval()
    given = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    other = given.clone()
    other[:, :, 5:] += 1
    leave = module.exits[0]
    before, after = leave(given), leave(other)
    assert before.shape == (2, 8, 5)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    # One after another, as a layer for vectors.
    for position in range(8):
        hidden = F.relu(leave.norm(leave.bottleneck(given[:, :, position])))
        torch.testing.assert_close(before[:, position], leave.head(hidden))


def test_exits_of_maps_have_the_height_and_width_of_the_outputs_and_those_of_values_no_channel() -> None:
    kind = KINDS["pixels"]
    x = kind.examples(2).x
    assert [list(found.shape) for found in build(kind.model, stages_of(1.0, 2)).logits(x)] == [[2, 3, 8, 8]] * 2
    leave = Exit(Map(6, 2), replace(kind.model, outputs=(8, 8), classes=8))
    coarse = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    found = leave(coarse)
    assert found.shape == (2, 8, 8)
    answers = leave.head(F.relu(leave.norm(leave.bottleneck(coarse))))
    torch.testing.assert_close(found, F.interpolate(answers, (8, 8), mode="bilinear")[:, 0])


def random_state(module: nn.Module) -> State:
    draws = torch.Generator().manual_seed(1)
    return {name: torch.randn(p.shape, generator=draws) / 4 for name, p in module.named_parameters()}


def test_the_page_says_what_each_method_can_do() -> None:
    page = (Path(__file__).parents[3] / "docs/tasks.md").read_text().split("## What each method can do")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    columns = {
        "classes": ["classes"],
        "labels": ["labels"],
        "values": ["value", "values"],
        "tokens": ["tokens"],
        "maps": ["pixels", "field"],
    }
    assert rows[0] == ["method", *columns]
    for name, row in zip(ROWS, rows[2:], strict=True):
        expected = ["no" if any((name, kind) in REFUSED for kind in kinds) else "yes" for kinds in columns.values()]
        assert row == [f"`{name}`", *expected]
    assert {kind for kinds in columns.values() for kind in kinds} == set(KINDS)


def test_the_page_names_every_loss_and_metric() -> None:
    page = (Path(__file__).parents[3] / "docs/tasks.md").read_text()
    for name, loss in LOSSES.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert set(re.findall(r"`(class_weights|smoothing|balance|delta)`", row)) == set(loss.settings)
        judged = row.split("|")[-2].strip()
        assert judged == ", ".join(title(metric) for metric in loss.metrics)
    for name in METRICS:
        assert f"`{name}`" in page
