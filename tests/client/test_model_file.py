"""A trained model in a file that says itself what it holds."""

import json
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from diastole.client.errors import ModelFileError
from diastole.client.model_file import KEY, load_model, parse_budget
from diastole.experiments.result import Result
from diastole.models.scoring import evaluate
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

DOCUMENT = {
    "data": {"proxy": 40},
    "rounds": {"count": 2},
    "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 2, "width": 0.25}},
}


def run(**changes: object) -> Result:
    return simulate(make_federation(Simulation.parse(DOCUMENT | changes, "test")))


@pytest.fixture(scope="module")
def result() -> Result:
    return run()


@pytest.fixture(scope="module")
def path(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("result")
    result.save(folder)
    return folder / "model.safetensors"


def test_models_have_the_accuracy_that_was_reported(result: Result, path: Path) -> None:
    test = make_federation(Simulation.parse(DOCUMENT, "test")).run.test
    for row in result.tiers:
        for module in (result.model(tier=row.tier), load_model(path, tier=row.tier), load_model(path, size=row.spec)):
            assert not module.training
            assert evaluate(module, test).accuracy == row.accuracy
    assert evaluate(load_model(path), test).accuracy == result.accuracy


def test_the_same_models_are_the_same_bytes(result: Result, path: Path) -> None:
    assert {result.file.to_bytes() for _ in range(20)} == {path.read_bytes()}


def test_a_budget_gives_the_largest_model_within_it(result: Result, path: Path) -> None:
    small, large = (
        sum(parameter.nbytes for parameter in load_model(path, tier=tier).parameters()) for tier in ("small", "large")
    )
    for budget, expected in ((small, small), (large - 1, small), (f"{large} B", large), ("1 GiB", large)):
        assert sum(parameter.nbytes for parameter in load_model(path, budget=budget).parameters()) == expected
    with pytest.raises(ModelFileError, match=f"the smallest size has {small} bytes"):
        load_model(path, budget=small - 1)
    with pytest.raises(ModelFileError, match="give one of them"):
        result.model(tier="small", budget=1)
    with pytest.raises(ModelFileError, match="is not a size"):
        parse_budget("lots")


def test_the_file_says_what_it_holds(result: Result, path: Path) -> None:
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()[KEY])
        names = list(file.keys())
    assert document["format"] == 1
    assert (document["method"], document["round"]) == ("width", 2)
    assert document["tiers"] == {"large": "width 1", "small": "width 0.25"}
    assert set(document["sizes"]) == {"width 1", "width 0.25"}
    assert {name for name in names if ":" not in name} == set(result.state)
    assert {name.partition(":")[0] for name in names if ":" in name} == {"width 1", "width 0.25"}


@pytest.mark.parametrize(
    "method",
    ["snnet", *(pytest.param(n, marks=pytest.mark.slow) for n in ("conv", "diastole", "scalefl", "nefl", "fjord"))],
)
def test_models_of_every_kind_come_back(method: str, tmp_path: Path) -> None:
    model = {"name": "resnet", "widths": [4, 8], "blocks": [2, 1], "group": 1}
    options = {"conv": {"epochs": 1, "weight_epochs": 1}} if method == "conv" else {}
    made = run(method=method, model=model, methods=options, rounds={"count": 1}, training={"batch_size": 512})
    made.file.write(tmp_path / "model.safetensors")
    x = torch.randn(3, *made.config.input_shape)
    with torch.no_grad():
        for spec in made.parts:
            mine, theirs = made.model(size=spec.label), load_model(tmp_path / "model.safetensors", size=spec.label)
            assert torch.equal(mine(x), theirs(x))


def test_what_is_no_model_is_one_line(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    with pytest.raises(ModelFileError, match="no such file"):
        load_model(other)
    other.write_bytes(b"nonsense")
    with pytest.raises(ModelFileError, match="not a diastole model"):
        load_model(other)
    safetensors.torch.save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(ModelFileError, match="says nothing of a diastole model"):
        load_model(other)
    with safe_open(path, "pt") as file:
        text, tensors = file.metadata()[KEY], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    document = json.loads(text)
    for change in (
        {"format": 2},
        {"whole": "width 3"},
        {"tiers": {"large": "none"}},
        {"model": "{}"},
        {"sizes": {"width 1": "{}"}},
        {"more": 1},
        {"round": -1},
    ):
        safetensors.torch.save_file(tensors, other, {KEY: json.dumps(document | change)})
        with pytest.raises(ModelFileError, match=r"^[^\n]*$"):
            load_model(other)
    for name in ("width 1:classifier.weight", "width 0.25:classifier.bias"):
        for wrong in ({name: torch.zeros(1)}, {f"{name}.more": torch.zeros(1)}):
            safetensors.torch.save_file(tensors | wrong, other, {KEY: text})
            with pytest.raises(ModelFileError, match=r"^[^\n]*$"):
                load_model(other)


def test_a_garbled_file_is_a_model_or_one_line(path: Path, tmp_path: Path) -> None:
    data, draws, other = bytearray(path.read_bytes()), random.Random(0), tmp_path / "other.safetensors"
    for _ in range(150):
        garbled = bytearray(data)
        for _ in range(3):
            garbled[draws.randrange(min(len(garbled), 4000))] = draws.randrange(256)
        other.write_bytes(garbled[: draws.choice([len(garbled), draws.randrange(len(garbled))])])
        try:
            load_model(other)
        except ModelFileError as error:
            assert "\n" not in str(error)  # noqa: PT017
