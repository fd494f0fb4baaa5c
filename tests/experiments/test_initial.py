"""A run that starts from given weights: files, names, refusals, and what tells one start from another."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from brought import Joined
from federations import federation
from torch import Tensor, nn

import diastole
from diastole.experiments.checkpoint import label, refuse_other
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.experiments.initial import begin, digest, register
from diastole.models.errors import SpecError
from diastole.models.methods.registry import METHODS, make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.family import network
from diastole.models.proxy import Proxy
from diastole.models.state import State
from diastole.models.training import Examples
from diastole.simulations.simulate import simulate

CNN = ModelConfig("cnn", (1, 8, 8), classes=10)
OWN = ModelConfig(
    "custom",
    (3, 8, 8),
    classes=4,
    group=2,
    factory="brought:Joined",
    stages=(("blocks.join1", "blocks.refine1"), ("blocks.join2", "blocks.refine2")),
)


def drawn(named: Mapping[str, Tensor], seed: int = 1) -> State:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=draws) for name, tensor in named.items()}


@pytest.fixture(scope="module")
def weights() -> State:
    return drawn(dict(network(CNN).named_parameters()))


def started(initial: Path, model: ModelConfig = CNN, method: str = "width", **table: Any) -> State:
    """Return the global state that a run starts from."""
    experiment = Experiment.parse({"method": method, "model": {"initial": initial, **table}}, "test")
    return begin(experiment, model, make_method(method, model, experiment.widths, experiment.training))


@pytest.fixture
def file(tmp_path: Path) -> Callable[[Mapping[str, Tensor]], Path]:
    def write(state: Mapping[str, Tensor]) -> Path:
        safetensors.torch.save_file(dict(state), tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    return write


def test_a_file_is_where_a_run_starts(tmp_path: Path, file: Any, weights: State) -> None:
    path = file(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in started(path).items())
    (tmp_path / "experiment.toml").write_text('[model]\ninitial = "weights.safetensors"\n')
    assert Experiment.load(tmp_path / "experiment.toml").model.initial == path
    # Without a round, what a run comes to is what it starts from.
    result = simulate(federation(model={"initial": path}, rounds={"count": 0}))
    assert all(torch.equal(result.state[name], tensor) for name, tensor in weights.items())


def test_what_a_run_has_left_starts_another_by_any_method(tmp_path: Path) -> None:
    few = {name: {"devices": 1, "width": width} for name, width in (("large", 1.0), ("small", 0.25))}
    result = simulate(federation(rounds={"count": 1}, method="splitmix", tiers=few))
    again = {"tiers": few, "model": {"initial": tmp_path / "model.safetensors"}, "rounds": {"count": 0}}
    result.file.write(tmp_path / "model.safetensors")
    same = simulate(federation(method="splitmix", **again))
    assert same.state.keys() == result.state.keys()
    assert all(torch.equal(same.state[name], tensor) for name, tensor in result.state.items())
    with pytest.raises(ExperimentError, match=r"tensor 'stages\.0\.0\.weight' \[16, 1, 3, 3\] is missing"):
        simulate(federation(method="width", **again))
    plain = simulate(federation(rounds={"count": 1}, tiers=few))
    plain.file.write(tmp_path / "model.safetensors")
    nested = simulate(federation(method="splitmix", **again))
    first = nested.state["bases.1.stages.0.0.weight"]
    assert torch.equal(first, plain.state["stages.0.0.weight"][len(first) : 2 * len(first)])


class Shifted(nn.Module):
    """Two linear layers behind a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(12))
        self.body, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x + self.shift).relu())


def test_a_constant_of_a_users_module_must_be_the_same(file: Any) -> None:
    module = Shifted()
    model = ModelConfig("custom", (12,), classes=3, group=1, factory=custom.register(module))
    table = {"name": "custom", "factory": model.factory, "group": 1}
    found = started(file(module.state_dict()), model, **table)
    assert all(torch.equal(tensor, module.get_parameter(name)) for name, tensor in found.items())
    with pytest.raises(ExperimentError, match="tensor 'shift' is a constant, and the network has other values"):
        started(file({**module.state_dict(), "shift": torch.zeros(12)}), model, **table)


@pytest.mark.slow
def test_tensors_of_a_users_module_have_the_users_names(file: Any) -> None:
    custom.allow(OWN.factory)
    module = Joined()
    mine = drawn(dict(module.named_parameters()))
    path = file({**mine, "norm.running_var": torch.ones(3)})
    found = started(path, OWN, factory="brought:Joined", name="custom", stages=OWN.stages, group=2)
    names = custom.paths(OWN)
    assert any(name.startswith("blocks.join1.") for name in names.values())
    assert all(torch.equal(tensor, mine[names[name]]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"classifier.weight": None}, r"tensor 'classifier.weight' \[10, \d+\] is missing; .*model\.fresh"),
        ({"classifier.weight": torch.zeros(3, 32)}, r"'classifier.weight' is torch.float32 \[3, 32\]; expected"),
        ({"classifier.bias": torch.zeros(10).half()}, "'classifier.bias' is torch.float16 .*; expected torch.float32"),
        ({"classifier.bias": torch.full((10,), torch.nan)}, "'classifier.bias' has values that are not finite"),
        ({"head.weight": torch.zeros(1)}, "tensor 'head.weight' is none of the network's .* and . more"),
    ],
)
def test_what_does_not_fit_is_named(
    file: Any, weights: State, change: Mapping[str, Tensor | None], refusal: str
) -> None:
    changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
    with pytest.raises(ExperimentError, match=refusal) as caught:
        started(file(changed))
    assert "\n" not in str(caught.value)


def test_statistics_of_a_normalisation_are_left_out(file: Any, weights: State) -> None:
    more = {"norm.running_mean": torch.ones(3), "norm.num_batches_tracked": torch.tensor(3)}
    assert started(file({**weights, **more})).keys() == weights.keys()


def test_a_head_for_other_classes_starts_anew(file: Any, weights: State) -> None:
    other = {**weights, "classifier.weight": torch.zeros(1000, 32), "classifier.bias": torch.zeros(1000)}
    found = started(file(other), fresh=["classifier.*"])
    usual = make_method("width", CNN, [1.0, 0.5, 0.25], Experiment().training).initial(0)
    assert found["classifier.weight"].shape == usual["classifier.weight"].shape
    assert found["classifier.weight"].abs().sum() > 0
    assert torch.equal(found["stages.0.0.weight"], weights["stages.0.0.weight"])
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    assert started(file({**body, "fc.weight": torch.ones(2)}), fresh=["classifier.*", "fc.*"]).keys() == usual.keys()
    with pytest.raises(ExperimentError, match=r"model.fresh: 'head\.\*' matches no tensor"):
        started(file(weights), fresh=["head.*"])
    with pytest.raises(ExperimentError, match="fresh: everything is drawn"):
        Experiment.parse({"model": {"fresh": ["head.*"]}}, "test")


def test_what_is_no_file_of_tensors_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    (tmp_path / "old.pth").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "text.safetensors").write_text("these are no weights at all")
    cases = {"weights.pt": "pickle", "old.pth": "pickle", "text.safetensors": "not a safetensors file"}
    for name, refusal in (cases | {"nowhere": "no such file", ".": "cannot be read"}).items():
        with pytest.raises(ExperimentError, match=refusal) as caught:
            started(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_method_that_cannot_tell_where_weights_belong_says_so(file: Any, weights: State, monkeypatch: Any) -> None:
    from diastole.models.method import Base
    from diastole.models.methods.widths.width import WidthMethod

    monkeypatch.setattr(WidthMethod, "origins", Base.origins)
    with pytest.raises(SpecError, match="neither start from given weights"):
        started(file(weights))


def test_another_start_is_another_run(tmp_path: Path, file: Any, weights: State) -> None:
    path = file(weights)
    experiment = Experiment.parse({"model": {"initial": path}}, "test")
    before, plain = label("data", experiment), Experiment()
    assert (label("data", experiment), digest(plain)) == (before, "")
    file(drawn(weights, 2))
    # A file system's clock may stand still between two quick writes.
    os.utime(path, ns=(0, time.time_ns() + 10**9))
    after = label("data", experiment)
    with pytest.raises(ExperimentError, match="was from other weights"):
        refuse_other(before, after, "the run")
    with pytest.raises(ExperimentError, match="was of another experiment"):
        refuse_other(label("data", plain), after, "the run")
    assert len({label("data", each) for each in (plain, experiment)}) == 2


def test_weights_are_given_in_python_too(weights: State) -> None:
    module = network(CNN)
    module.load_state_dict(weights)
    x, y = torch.randn(30, 1, 8, 8), torch.arange(30) % 10
    model = {"name": "cnn", "widths": [16, 32]}
    for given in (module, weights):
        made = diastole.Experiment(model=model, train=(x, y), test=(x, y), rounds=0, initial=given, method="width")
        found = diastole.simulate(made).state
        assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    with pytest.raises(ExperimentError, match="initial: expected a path, a torch module, or tensors by name"):
        register(3)  # type: ignore[arg-type]
    with pytest.raises(ExperimentError, match=r"^initial: tensor 'other' is none of the network's"):
        diastole.simulate(made.changed(model__initial=register({"other": torch.zeros(1)})))


@pytest.mark.parametrize("method", [pytest.param("snnet", marks=pytest.mark.slow), "snnetv2"])
def test_stitched_networks_start_from_trained_anchors(tmp_path: Path, method: str) -> None:
    small = ModelConfig("cnn", (1, 8, 8), classes=10, widths=(8, 16))
    files, states = [], []
    for number, config in enumerate((small, CNN)):
        states.append(drawn(dict(network(config).named_parameters()), number))
        files.append(f"anchor{number}.safetensors")
        safetensors.torch.save_file(states[-1], tmp_path / files[-1])
    options = {method: {"anchors": files}}
    (tmp_path / "experiment.toml").write_text(
        f'method = "{method}"\n[methods.{method}]\nanchors = {files}\n[tiers]\n'
        "large = {devices = 1, width = 1.0}\nsmall = {devices = 1, width = 0.5}\n"
    )
    experiment = Experiment.load(tmp_path / "experiment.toml")
    made = make_method(method, CNN, experiment.widths, experiment.training, experiment.options)
    start = begin(experiment, CNN, made)
    for number, state in enumerate(states):
        assert all(torch.equal(start[f"anchors.{number}.{name}"], tensor) for name, tensor in state.items())
    # There is no warm-up: stitches have their least-squares start before the first round.
    prepared = made.prepare(
        start, Proxy(Examples(torch.randn(32, 1, 8, 8), torch.arange(32) % 10), Examples.empty()), Moment(1, 10)
    )
    changed = {name.split(".")[0] for name, tensor in prepared.items() if not torch.equal(tensor, start[name])}
    assert changed == {"stitches"}
    before = digest(experiment)
    safetensors.torch.save_file(states[0], tmp_path / files[1])
    assert digest(experiment) != before
    with pytest.raises(ExperimentError, match=r"anchor1.*'stages\.0\.0\.weight' is .*\[8, 1, 3, 3\]; expected"):
        begin(experiment, CNN, made)
    (tmp_path / files[0]).unlink()
    with pytest.raises(ExperimentError, match=r"anchor0\.safetensors: no such file"):
        begin(experiment, CNN, made)
    with pytest.raises(SpecError, match=rf"methods\.{method}\.anchors: 2 files; expected one for each of the widths"):
        make_method(method, CNN, [1.0], experiment.training, options[method])


def test_every_method_says_where_a_plain_network_lies() -> None:
    # Baselines are no rows of the contract's tests.
    for name in (name for name, row in METHODS.items() if row.baseline and not row.each_width):
        method = make_method(name, CNN, [0.5, 1.0], Experiment().training)
        assert method.origins().keys() == method.initial(0).keys()
