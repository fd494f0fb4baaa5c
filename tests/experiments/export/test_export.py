"""A run's models as files that run elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import diastole
from diastole.experiments.errors import ExportError
from diastole.experiments.export.budget import Budget
from diastole.experiments.export.search import Numbers, evolve
from diastole.experiments.export.source import Source, find
from diastole.models.export.plain import parameter_bytes
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

DOCUMENT: dict[str, Any] = {
    "data": {"proxy": 60},
    "rounds": {"count": 2, "evaluate_every": 2},
    "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 2, "width": 0.25}},
}


def ran(folder: Path, **changes: object) -> Path:
    result = simulate(make_federation(Simulation.parse(DOCUMENT | changes, "test")))
    result.save(folder, ())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("run"), method="diastole")


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"ofa": {"pool": 2, "warmup": 0.5}}
    return ran(tmp_path_factory.mktemp("ofa"), method="ofa", methods=options)


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("exits"), method="depthfl")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 MB, 50 MMAC, 20 ms", Budget(2e6, 50e6, 0.02)),
        ("1.5kib", Budget(size=1536)),
        ("7 GMACs", Budget(macs=7e9)),
        ("3 s, 10 b", Budget(size=10, seconds=3)),
        ("250us", Budget(seconds=250e-6)),
    ],
)
def test_a_budget_is_read(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected


@pytest.mark.parametrize("text", ["", "2", "2 MB, 3 kB", "-1 MB", "2 parsecs", "1 MB,", "nan ms", "1e9 MB"])
def test_a_budget_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(ExportError, match="is not understood; up to three of") as caught:
        Budget.parse(text)
    assert "\n" not in str(caught.value)


def test_a_run_is_a_folder_a_state_folder_or_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(folder)
    assert find(folder).samefile(find(tmp_path))
    assert find(folder / "model.safetensors") == find(folder)
    with pytest.raises(ExportError, match="no run; a folder that a run has left"):
        find(tmp_path / "nothing")


def test_one_line_gives_a_module_of_ordinary_layers(folder: Path) -> None:
    for tier in (None, "small"):
        module, trained = diastole.load(folder, tier=tier), diastole.load_model(folder / "model.safetensors", tier=tier)
        x = torch.randn(5, 1, 8, 8)
        assert torch.allclose(module(x), trained(x), atol=1e-6)
        assert "Diastole" not in {type(part).__name__ for part in module.modules()}


@pytest.mark.slow
def test_torch_exports_the_module(folder: Path) -> None:
    x = torch.randn(2, 1, 8, 8)
    torch.export.export(diastole.load(folder, tier="small"), (x,))


def test_a_model_file_says_what_it_is(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        said = file.metadata()
    told = {"network": "cnn", "method": "diastole", "classes": "10", "input": "[n, 1, 8, 8] float32", "data": "digits"}
    assert told.items() <= said.items()
    assert "accuracy" in said["task"]
    assert "diastole 0.25" in said["models"]


def test_a_tier_is_exported_to_onnx_with_a_card(run: Any, folder: Path, tmp_path: Path) -> None:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    target = tmp_path / "small.onnx"
    code, out, _ = run("export", folder, "--tier", "small", "--format", "onnx", "--out", target, "--json")
    assert code == 0
    told = json.loads(out)
    session = ort.InferenceSession(target.read_bytes(), providers=["CPUExecutionProvider"])
    x = torch.randn(6, 1, 8, 8)
    given = session.run(None, {"x": x.numpy()})[0]
    assert np.abs(given - diastole.load(folder, tier="small")(x).numpy()).max() < 1e-4
    card = told["card"]
    kept = {prop.key: prop.value for prop in onnx.load(target).metadata_props}
    inside = json.loads(kept["diastole"])
    assert card == json.loads((tmp_path / "small.onnx.json").read_text())
    assert card == inside
    assert card["model"] == "diastole 0.25"
    assert card["rounds"] == 2
    assert card["input"]["shape"] == [1, 8, 8]
    report = json.loads((folder / "report.json").read_text())
    (small,) = (row for row in report["tiers"] if row["tier"] == "small")
    assert [form["form"] for form in card["forms"]] == ["torch", "onnx"]
    assert card["forms"][0]["test"] == card["forms"][1]["test"] == small["accuracy"]
    assert card["forms"][1]["bytes"] < target.stat().st_size
    assert "| onnx |" in (tmp_path / "small.onnx.md").read_text()


@pytest.mark.parametrize("form", ["safetensors", "torchscript"])
def test_other_forms_answer_as_torch_does(run: Any, folder: Path, tmp_path: Path, form: str) -> None:
    target = tmp_path / "model"
    code, _, _ = run("export", folder, "--size", "diastole 0.25", "--format", form, "--out", target)
    assert code == 0
    x = torch.randn(3, 1, 8, 8)
    made = diastole.load(target) if form == "safetensors" else torch.jit.load(target)  # type: ignore[no-untyped-call]
    assert torch.allclose(made(x), diastole.load(folder, tier="small")(x), atol=1e-5)


def test_the_best_model_within_a_budget_is_chosen_by_the_proxy_set(run: Any, folder: Path, tmp_path: Path) -> None:
    small = parameter_bytes(diastole.load(folder, tier="small"))
    code, out, _ = run("export", folder, "--budget", f"{small} B", "--out", tmp_path / "a", "--json")
    assert code == 0
    assert json.loads(out)["card"]["model"] == "diastole 0.25"
    assert json.loads(out)["looked"] == 2
    code, _, error = run("export", folder, "--budget", f"{small - 1} B", "--out", tmp_path / "b")
    assert code == 2
    assert f"none of 2 sub-models fits the budget; the smallest has {small} bytes" in error
    assert not (tmp_path / "b").exists()
    code, _, error = run("export", folder, "--budget", "1 MB", "--tier", "small")
    assert code == 2
    assert "give one of them" in error


def test_every_architecture_of_a_supernet_is_looked_at(run: Any, supernet: Path, tmp_path: Path) -> None:
    code, out, _ = run("export", supernet, "--budget", "4 kB", "--out", tmp_path / "a.safetensors", "--json")
    assert code == 0
    told = json.loads(out)
    # Two stages of four shares each.
    assert told["looked"] == 16
    module = diastole.load(tmp_path / "a.safetensors")
    assert parameter_bytes(module) == told["card"]["forms"][0]["bytes"] <= 4000
    # What the run has left is found again by its architecture, order of channels and all.
    source = Source.open(supernet)
    assert source.file.kept
    assert all(name.startswith("order/") for name in source.file.kept)


def test_evolution_finds_what_a_look_at_everything_finds() -> None:
    weights = torch.randn(6, generator=torch.Generator().manual_seed(2)).tolist()

    def rank(numbers: Numbers) -> tuple[float, int] | None:
        worth = sum(weight * number for weight, number in zip(weights, numbers, strict=True))
        return None if sum(numbers) > 9 else (worth, -sum(numbers))

    found = evolve((4,) * 6, rank, "seed")
    every = torch.cartesian_prod(*[torch.arange(4)] * 6).tolist()
    best = max(value for numbers in every if (value := rank(tuple(numbers))) is not None)
    assert found is not None
    assert found[1] == best


def test_without_its_report_a_run_is_judged_by_named_examples(run: Any, folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes((folder / "model.safetensors").read_bytes())
    code, out, _ = run("export", model, "--tier", "small", "--format", "torchscript", "--json")
    assert code == 0
    assert "no report.json beside" in json.loads(out)["card"]["notes"][0]
    np.savez(tmp_path / "mine.npz", x=np.zeros((4, 1, 8, 8), np.float32), y=np.array([0, 1, 2, 3]))
    code, out, _ = run("export", model, "--budget", "1 MB", "--data", tmp_path / "mine.npz", "--json")
    assert code == 0
    assert json.loads(out)["card"]["forms"][0]["validation"] == 0.25


def test_a_report_cannot_have_code_imported(folder: Path, tmp_path: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    report["experiment"]["training"]["loss"] = "evil.module:loss"
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ExportError, match=r"evil\.module:loss, which would be imported; say --allow-factory"):
        Source.open(tmp_path).known()


def test_int8_costs_less_than_a_point_and_is_measured_beside_float32(run: Any, folder: Path, tmp_path: Path) -> None:
    onnx, target = pytest.importorskip("onnx"), tmp_path / "int8.onnx"
    code, out, _ = run("export", folder, "--format", "onnx", "--int8", "--out", target, "--json")
    assert code == 0
    _, float32, int8 = json.loads(out)["card"]["forms"]
    assert int8["form"] == "onnx int8"
    assert float32["test"] - int8["test"] < 0.01
    assert int8["bytes"] < float32["bytes"]
    assert 0 < int8["milliseconds"] < 1000
    model = onnx.load(target)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    convolutions = [tensor for tensor in weights.values() if len(tensor.dims) == 4]
    assert len(convolutions) == 2
    # One scale for each output channel.
    scales = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert [size for name, size in scales.items() if name.endswith("weight_scale") and len(size) == 1 and size[0] > 1]
    assert "diastole" in {each.key for each in model.metadata_props}
    code, _, error = run("export", folder, "--format", "torchscript", "--int8")
    assert code == 2
    assert "--int8 goes with --format onnx" in error


def test_a_network_with_exits_leaves_by_the_first_that_is_sure(run: Any, exits: Path, tmp_path: Path) -> None:
    ort, target = pytest.importorskip("onnxruntime"), tmp_path / "exits.onnx"
    code, out, _ = run("export", exits, "--format", "onnx", "--exits", "5", "--out", target, "--json")
    assert code == 0
    card = json.loads(out)["card"]
    _, whole, leaving = card["forms"]
    assert leaving["form"] == "onnx with exits"
    assert leaving["validation"] >= whole["validation"] - 0.05
    assert "Leaves by the first exit whose largest probability" in card["notes"][-1]
    session = ort.InferenceSession(target.read_bytes(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((1, 1, 8, 8), np.float32)})[0].shape == (1, 10)
    code, _, error = run("export", exits, "--format", "torchscript", "--exits", "1")
    assert code == 2
    assert "--exits goes with --format onnx" in error


def test_a_network_without_exits_has_none_to_leave_by(run: Any, folder: Path) -> None:
    code, _, error = run("export", folder, "--format", "onnx", "--exits", "1")
    assert code == 2
    assert "the model has no exits" in error


def test_a_model_is_made_smaller_without_training(run: Any, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "thin.pt"
    code, out, _ = run(
        *("export", folder, "--compress", "channels", "--keep", "0.7"),
        *("--format", "torchscript", "--out", target, "--json"),
    )
    assert code == 0
    card = json.loads(out)["card"]
    before, after, _ = card["forms"]
    assert after["form"] == "torch, channels 70%"
    assert after["bytes"] < 0.8 * before["bytes"]
    assert after["test"] > before["test"] - 0.1
    assert "channels left out by LASSO" in card["notes"][-1]
    assert torch.jit.load(target)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--compress", "depth", "--format", "torchscript"), "no block keeps its shape, and no two convolutions"),
        (("--compress", "channels"), "goes with another --format"),
        (("--compress", "size", "--format", "onnx"), "accepted: depth, channels"),
        (("--compress", "depth", "--keep", "1.5", "--format", "onnx"), "a share between 0 and 1 is accepted"),
    ],
)
def test_what_cannot_be_made_smaller_is_one_line(run: Any, folder: Path, options: tuple[str, ...], said: str) -> None:
    code, _, error = run("export", folder, *options)
    assert code == 2
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_depth_is_compressed_by_measured_times(run: Any, tmp_path: Path) -> None:
    blocks = {"name": "resnet", "widths": [8, 16], "blocks": [3, 3]}
    folder = ran(tmp_path / "run", method="width", model=blocks, rounds={"count": 6})
    code, out, _ = run(
        *("export", folder, "--compress", "depth", "--keep", "0.8"),
        *("--format", "onnx", "--out", tmp_path / "a.onnx", "--json"),
    )
    assert code == 0
    card = json.loads(out)["card"]
    before, after, onnx = card["forms"]
    assert after["form"] == "torch, depth 80%"
    assert after["milliseconds"] < before["milliseconds"]
    assert onnx["test"] == after["test"] > before["test"] - 0.2
    assert "of the time as it was predicted" in card["notes"][-1]
