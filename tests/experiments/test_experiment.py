"""An experiment, or one line that says what is wrong with it: whatever the file, the override, or the change."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.client.errors import DataError
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import SIMULATED, Experiment
from diastole.models.methods.registry import METHODS
from diastole.models.training import Examples
from diastole.simulations.simulation import Simulation

KEYS = st.one_of(
    st.sampled_from(
        ["seed", "method", "tiers", "a", "width", "devices", "rounds", "count", "model", "widths", "methods"]
    ),
    st.sampled_from([*SIMULATED, *METHODS, "classes", "preset", "data", "path", "training", "epochs", "server"]),
    st.text(max_size=5),
)
NUMBERS = st.one_of(st.integers(), st.sampled_from([2**63, -(2**63), 2**64, 10**400]), st.floats())
VALUES = st.recursive(
    st.one_of(NUMBERS, st.booleans(), st.text(max_size=8), st.sampled_from(["\ud800", "\0", "width", "phones"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def check(make: Any) -> None:
    """Accept an experiment, or one printable line."""
    try:
        made = make()
    except ExperimentError as error:
        line = str(error)
        line.encode()
        assert "\n" not in line
        assert "Traceback" not in line
    else:
        assert isinstance(made, Experiment)


@settings(max_examples=75, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_document_is_an_experiment_or_an_error(document: dict[str, Any]) -> None:
    check(lambda: Simulation.parse(document, "fuzz"))
    check(lambda: Experiment.parse(document, "fuzz"))


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode(errors="replace"))), st.text(max_size=30))
def test_any_text_and_any_override_is_an_experiment_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, override: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    check(lambda: Simulation.load(path))
    path.write_text("")
    check(lambda: Simulation.load(path, [override]))
    check(lambda: Simulation.load(path, [f"model.widths={override}"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 100_000 + "]" * 100_000, "tables within tables go too deep"),
        ("[a" + ".a" * 50 + "]", "go deeper than 12"),
        ("seed = 9223372036854775808", "seed: a number of more than 63 bits"),
        ("model.widths = [" + "4," * 20_000 + "]", "more than 10000 values"),
        ("model.widths = [" + "4," * 100 + "]", "model.widths: Tuple should have at most 64 items"),
        ("rounds.patience = inf", "patience: Input should be a finite number"),
        ("#" * (2 << 20), "is larger than 1048576 bytes"),
        ("tiers.a.devices = 100000000000\ntiers.a.width = 1", "tiers.a.devices: Input should be less than or equal to"),
        ("[methods.heterofl]\n[methods.width]", "methods: two names of one method among heterofl, width"),
        ("method = 'dedicated'", "method dedicated: is a run for each width, which only comparisons have"),
        ("engine = 'warp'", "engine: must be one of loop, processes, batched, auto, flower, not 'warp'"),
        ("partition.kind = 'fair'", "partition.kind: must be one of iid, dirichlet, "),
        ("population.preset = 'cars'", "population.preset: must be one of phones, pi, "),
    ],
)
def test_what_no_experiment_has_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=r"^[^\n]*$") as caught:
        Simulation.load(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_an_override_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.toml").touch()
    with pytest.raises(ExperimentError, match="is not text that UTF-8 can write"):
        Simulation.load(tmp_path / "x.toml", ["name=\udcff"])


def test_a_change_makes_tables_as_an_override_does() -> None:
    experiment = Simulation.parse({}, "test")
    assert experiment.changed(server__name="fedadam").optimiser.name == "fedadam"
    assert experiment.changed(methods__width__masked=True).options == {"masked": True}
    for change, message in (
        ({"tiers__b__devices": 1}, "tiers.b.width: is missing"),
        ({"nosuch__key": 1}, "nosuch: no such key; accepted: name"),
        ({"seed__x": 1}, "seed.x: seed is not a table"),
    ):
        with pytest.raises(ExperimentError, match=message):
            experiment.changed(**change)


def test_other_names_of_methods_are_understood_everywhere() -> None:
    found = Experiment.parse({"method": "heterofl", "methods": {"heterofl": {"masked": True}}}, "test")
    assert (found.method, found.options) == ("width", {"masked": True})
    assert Experiment.parse({"method": "fedconv"}, "test").method == "conv"


def test_what_only_simulations_know_is_what_simulations_add() -> None:
    assert set(SIMULATED) == set(Simulation.model_fields) - set(Experiment.model_fields)


def dataset(x: torch.Tensor, y: torch.Tensor, **changes: Any) -> Dataset:
    return Dataset(**{"name": "mine", "train": Examples(x, y), "test": Examples(x, y), "classes": 3} | changes)


X, Y = torch.randn(20, 1, 8, 8), torch.arange(20) % 3


def test_a_data_set_takes_labels_of_any_whole_numbers() -> None:
    assert dataset(X, Y.int()).train.y.dtype == torch.int64
    assert dataset(X, Y.int()).digest == dataset(X, Y).digest != dataset(X, Y.flip(0)).digest


@pytest.mark.parametrize(
    ("x", "y", "changes", "message"),
    [
        (X.double(), Y, {}, "train: inputs are float64 [20, 1, 8, 8]; float32"),
        (X, Y[:15], {}, "train: targets are int64 [15]; whole numbers or values [20, ...]"),
        (X, Y[0], {}, "train: targets are int64 []; whole numbers or values [20, ...]"),
        (X, Y.to(torch.complex64), {}, "train: targets are complex64 [20]; whole numbers or values"),
        (X, Y * torch.inf, {}, "train: a target holds a value that is not finite"),
        (X, Y.float(), {"test": Examples(X, Y)}, "targets of test are int64 [20]; float32 [20], as in train"),
        (X, torch.stack([Y, Y - 3], 1), {}, "train: a label is -3; whole numbers from 0 to 2"),
        (X, torch.where(Y == 2, -100, Y), {}, "train: a label is -100; whole numbers from 0 to 2"),
        (X, Y, {"classes": 2}, "train: a label is 2; whole numbers from 0 to 1"),
        (X, Y, {"test": Examples(X[:0], Y[:0])}, "test: inputs are float32 [0, 1, 8, 8]"),
        (X, Y, {"test": Examples(X[:, :, 1:], Y)}, "an example of test is [1, 7, 8]; [1, 8, 8], as in train"),
        (X * torch.nan, Y, {}, "train: an input holds a value that is not finite"),
        (X, Y, {"users": Y[:3]}, "users is int64 [3]; whole numbers [20]"),
    ],
)
def test_a_data_set_checks_itself(x: torch.Tensor, y: torch.Tensor, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=r"^[^\n]*$") as caught:
        dataset(x, y, **changes)
    assert message in str(caught.value)
