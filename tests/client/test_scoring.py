"""What a sub-model is worth to a device, and the model that the device makes its own."""

from pathlib import Path

import pytest
import torch

from diastole.client.current import Current, _only_head, personalise
from diastole.client.inference import CURRENT, PERSONAL, Predictor, personal_of
from diastole.client.scoring import score, split
from diastole.client.statefolder import StateFolder
from diastole.models.errors import ModelError
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator
from diastole.models.state import State, state_of
from diastole.models.task import Task
from diastole.models.training import Examples, TrainConfig, fit

MODEL = ModelConfig("cnn", (1, 8, 8), 3, (4, 8), group=2)
TASK = Task("r3-phone", 3, "phone", spec_of(0.5), TrainConfig(epochs=3, batch_size=8), 11)


@pytest.fixture
def examples() -> Examples:
    """Return examples of three classes, each round a centre of its own."""
    draws = generator("scoring")
    y = torch.randint(3, (60,), generator=draws)
    centres, blur = torch.randn(3, *MODEL.input_shape, generator=draws), torch.randn(60, 1, 8, 8, generator=draws)
    return Examples(2 * centres[y] + blur, y)


def trained(examples: Examples) -> tuple[State, State]:
    """Return a sub-model's parameters before and after training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build(MODEL, TASK.spec)
    before = {name: tensor.clone() for name, tensor in state_of(module).items()}
    fit(module, examples, TASK.training, generator("scoring"))
    return before, state_of(module)


def test_a_test_is_drawn_by_the_devices_name_and_is_no_part_of_training(examples: Examples) -> None:
    numbered = Examples(torch.arange(60.0)[:, None], examples.y)
    parts = split(numbered, 0.25, "phone")
    assert (len(parts.training), len(parts.kept)) == (45, 15)
    assert sorted(torch.cat([parts.training.x, parts.kept.x]).flatten().tolist()) == list(range(60))
    assert torch.equal(parts.kept.x, split(numbered, 0.25, "phone").kept.x)
    assert not torch.equal(parts.kept.x, split(numbered, 0.25, "tablet").kept.x)
    assert len(split(numbered, 0.0, "phone").kept) == 0
    assert len(split(numbered.part(0, 2), 0.99, "phone").training) == 1


def test_scores_are_those_of_the_kept_examples_before_and_after(examples: Examples) -> None:
    parts = split(examples, 0.4, "phone")
    states = trained(parts.training)
    found = score(MODEL, TASK, "accuracy", states, parts.kept, parts.training.x)
    assert found is not None
    right = []
    for state in states:
        module = build(MODEL, TASK.spec)
        module.load_state_dict(state)
        right.append((module.eval()(parts.kept.x).argmax(1) == parts.kept.y).float().mean().item())
    assert (found.examples, found.before, found.after) == (24, pytest.approx(right[0]), pytest.approx(right[1]))
    assert found.after > found.before
    for metric in ("", "no-such", "mae", "somewhere:judge"):
        assert score(MODEL, TASK, metric, states, parts.kept, parts.training.x) is None
    assert score(MODEL, TASK, "accuracy", states, examples.part(0, 0), parts.training.x) is None


def test_a_device_trains_its_head_or_all_further_and_the_same_at_every_time(examples: Examples) -> None:
    _, state = trained(examples)
    for personal, moved in (("head", {"classifier.weight", "classifier.bias"}), ("finetune", set(state))):
        mine = personalise(MODEL, TASK, state, examples, personal)  # type: ignore[arg-type]
        assert {name for name in state if not torch.equal(mine[name], state[name])} == moved
        again = personalise(MODEL, TASK, state, examples, personal)  # type: ignore[arg-type]
        assert all(torch.equal(mine[name], again[name]) for name in mine)
    with pytest.raises(ModelError, match="no one layer that gives its outputs"):
        _only_head(torch.nn.ReLU(), "")


def test_what_was_trained_last_is_kept_and_a_model_of_its_own_once_the_run_is_over(
    examples: Examples, tmp_path: Path
) -> None:
    _, state = trained(examples)
    folder = StateFolder(tmp_path / "state")
    current = Current(folder, "finetune", every=3600)
    current.take("one", MODEL, TASK, state, examples)
    assert not folder.path(CURRENT).exists()
    current.finish(over=False)
    predictor = Predictor(folder.path(CURRENT))
    assert (predictor.round, predictor.label) == (3, "width 0.5")
    assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(predictor.module).items())
    assert not folder.path(PERSONAL).exists()
    current.finish(over=True)
    mine = state_of(Predictor(folder.path(PERSONAL)).module)
    expected = personalise(MODEL, TASK, state, examples, "finetune")
    assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_each_run_has_a_model_of_its_own(examples: Examples, tmp_path: Path) -> None:
    folder, first = StateFolder(tmp_path / "state"), trained(examples)[1]
    second = {name: tensor + 0.1 for name, tensor in first.items()}
    current = Current(folder, "head", every=3600)
    for run_id, state in (("one", first), ("two", second), ("../no name", first)):
        current.take(run_id, MODEL, TASK, state, examples)
    current.leave({"two", "../no name"})
    assert folder.names("personal") == ["personal-one.safetensors", PERSONAL]
    current.take("two", MODEL, TASK, second, examples)
    current.finish(over=True)
    assert len(folder.names("personal")) == 4
    for names, state in (
        ((personal_of("one"), personal_of("../no name")), first),
        ((personal_of("two"), PERSONAL), second),
    ):
        expected = personalise(MODEL, TASK, state, examples, "head")
        for name in names:
            found = state_of(Predictor(folder.path(name)).module)
            assert all(torch.equal(found[each], expected[each]) for each in expected)
    kept = state_of(Predictor(folder.path(CURRENT)).module)
    assert all(torch.equal(kept[each], second[each]) for each in second)


def test_without_a_folder_nothing_is_kept(examples: Examples) -> None:
    current = Current(None, "finetune", every=0)
    current.take("one", MODEL, TASK, trained(examples)[1], examples)
    current.finish(over=True)
