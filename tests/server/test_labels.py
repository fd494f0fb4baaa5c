"""Labels of devices: kept, bounded, and honoured by the planner of a run that is for some of them."""

from collections.abc import Mapping

import pytest
from scripted import MODEL, TRAINING

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.models.methods.registry import make_method
from diastole.models.networks.family import initial_state
from diastole.proto.profile import Profile
from diastole.server.labels import MOST_LABELS, why_not
from diastole.server.round import Rounds
from diastole.server.settings import RoundConfig, Settings
from diastole.server.store.labels import Labels
from diastole.server.store.memory import MemoryStore

NORTH = {"site": "north"}


def rounds(wanted: Mapping[str, str], labels: Labels | None) -> Rounds:
    settings = Settings(MODEL, TRAINING, RoundConfig(labels=dict(wanted)), seed=1)
    method = make_method("width", MODEL, [1.0, 0.5], TRAINING)
    made = Rounds(settings, method, initial_state(MODEL, 0), labels=labels.of if labels else None)
    made.prepare(1)
    return made


def drawn(made: Rounds, number: int) -> list[str]:
    return [task.device for task in made.open(number, dict.fromkeys("abc", Profile("test", 8))).tasks]


def test_a_run_draws_the_devices_that_have_each_of_its_labels() -> None:
    labels = Labels(MemoryStore(), "here")
    labels.change("a", {"site": "north", "room": "cellar"})
    labels.change("b", {"site": "south"})
    made = rounds(NORTH, labels)
    assert drawn(made, 1) == ["a"]
    said = "it is not labelled site=north, which rounds.labels asks for"
    assert [made.planner.barred(name) for name in "abc"] == ["", said, said]
    assert made.planner.why_not("b", Profile("test", 8), made.sizes[0]) == said
    # What an operator changes counts from the next round on.
    labels.change("c", NORTH)
    labels.change("a", {}, ["site"])
    assert drawn(made, 2) == ["c"]
    assert drawn(rounds({**NORTH, "room": "cellar"}, labels), 1) == []
    assert drawn(rounds({}, labels), 1) == drawn(rounds(NORTH, None), 1) == ["a", "b", "c"]
    assert why_not({"a": "1", "b": "2"}, {"b": "3"}) == "it is not labelled a=1 b=2, which rounds.labels asks for"


def test_labels_outlast_a_process_and_are_few() -> None:
    store = MemoryStore()
    first = Labels(store, "here")
    assert first.change("a", {"site": "north", "room": "cellar"}, ["room"]) == NORTH
    many = {f"key-{number}": "x" for number in range(MOST_LABELS)}
    assert len(first.change("a", many)) == MOST_LABELS + 1
    first.change("b", NORTH)
    first.change("b", {}, ["site"])
    assert Labels(store, "here").all() == first.all() == {"a": NORTH}
    assert Labels(store, "there").of("a") == {}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"site": "two words"}, "rounds.labels: label 'site' = 'two words'; use 1 to 63 characters of A-Z a-z 0-9 . _"),
        ({"": "x"}, "rounds.labels: label '' = 'x'"),
        ({"site": 3}, "rounds.labels.site"),
        ({f"k{number}": "x" for number in range(MOST_LABELS + 1)}, "32"),
    ],
)
def test_wrong_labels_are_one_line_when_the_file_is_read(labels: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment.parse({"rounds": {"labels": labels}}, "x.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
