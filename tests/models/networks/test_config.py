"""Whatever a configuration says, it gives a model or one line that says what is wrong."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.models.errors import ModelError
from diastole.models.networks.config import LONGEST_JSON, ModelConfig
from diastole.models.networks.family import channels, classifier, depth, initial_state, layout, maps, narrowed, network
from diastole.models.networks.shape import Shape
from diastole.proto.errors import DiastoleError

NAMES = ("cnn", "simple-cnn", "resnet", "mobilenet", "vit", "transformer", "custom", "vgg", "", "\ud800")
SIZES = st.one_of(st.integers(-2, 24), st.sampled_from([0, 1 << 14, 1 << 24, 1 << 31, 1 << 62, 1 << 64, -(1 << 70)]))
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from(NAMES),
    "input_shape": st.one_of(st.sampled_from([[1, 8, 8], [3, 16], [12]]), st.lists(SIZES, max_size=5)),
    "classes": st.one_of(st.integers(2, 10), SIZES),
    "widths": st.one_of(st.sampled_from([[4, 8], [8, 8], [8]]), st.lists(SIZES, max_size=4)),
    "blocks": st.one_of(st.sampled_from([[1, 1], [2]]), st.lists(SIZES, max_size=4)),
    "group": st.one_of(st.sampled_from([1, 2, 4]), SIZES),
    "patch": st.one_of(st.sampled_from([2, 4]), SIZES),
    "vocabulary": st.one_of(st.sampled_from([0, 9]), SIZES),
    "kernel": st.sampled_from([3, 5, 7, 9, 0]),
    "expand": st.one_of(st.floats(1, 4), st.floats(), SIZES),
    "factory": st.sampled_from(["", "a:b", "nothing", ":", "\ud800:x"]),
    "stages": st.sampled_from([[], [["a"]], [[]], [["a"], ["b", "c"]], [[""]]]),
    "options": st.sampled_from([[], [["a", 1]], [["a"]], [["", 1]], [["a", [1]]], {"a": 1}]),
}
REQUIRED = ("name", "input_shape", "classes")
DOCUMENTS = st.fixed_dictionaries(
    {key: FIELDS[key] for key in REQUIRED},
    optional={key: values for key, values in FIELDS.items() if key not in REQUIRED},
)
MODELS = {
    "cnn": ModelConfig("cnn", (1, 8, 8), 3, (8, 8)),
    "simple-cnn": ModelConfig("simple-cnn", (1, 8, 8), 3, (8, 8, 8)),
    "resnet": ModelConfig("resnet", (1, 8, 8), 3, (8, 8), (2, 1)),
    "mobilenet": ModelConfig("mobilenet", (1, 8, 8), 3, (8, 8), (2, 1)),
    "vit": ModelConfig("vit", (1, 8, 8), 3, (8, 8), (2, 1)),
    "transformer": ModelConfig("transformer", (12,), 3, (8, 8), (2, 1), vocabulary=9),
}
FEW = st.one_of(st.sampled_from([4, 8]), SIZES)
SHAPES = (
    st.lists(FEW, max_size=3).map(tuple),
    st.lists(st.lists(st.integers(-1, 3), max_size=3).map(tuple), max_size=3).map(tuple),
    st.lists(st.sampled_from([3, 5, 7, 9]), max_size=4).map(tuple),
    st.lists(st.one_of(st.sampled_from([0.5, 6.0]), st.floats()), max_size=4).map(tuple),
)


def used(model: ModelConfig) -> None:
    """Do with a configuration, on the meta device, what every method does first."""
    with torch.device("meta"):
        network(model)
        network(model, narrowed(model, 0.5))
    layout(model)
    channels(model)
    classifier(model)
    maps(model, narrowed(model, 0.5).first(depth(model)))


def fault(make: Callable[[], object]) -> str:
    """Return what diastole says is wrong, empty for nothing; any other exception fails the test."""
    try:
        make()
    except DiastoleError as error:
        return str(error)
    return ""


def check(message: str) -> None:
    """Check that a message is one line that can be printed."""
    assert len(message.splitlines()) <= 1
    assert len(message) < 2000
    message.encode()


@given(st.one_of(st.text(), st.text(st.characters(), max_size=10), ANYTHING.map(json.dumps)))
@settings(max_examples=100)
def test_any_text_gives_a_model_or_one_line(text: str) -> None:
    check(fault(lambda: used(ModelConfig.from_json(text))))


@given(DOCUMENTS)
@settings(max_examples=300)
def test_any_plausible_configuration_gives_a_model_or_one_line(document: dict[str, Any]) -> None:
    check(fault(lambda: used(ModelConfig.from_json(json.dumps(document)))))
    check(fault(lambda: used(ModelConfig.of(**document))))


@given(DOCUMENTS, st.sampled_from(list(FIELDS)), ANYTHING)
@settings(max_examples=100)
def test_any_value_of_a_key_gives_a_model_or_one_line(document: dict[str, Any], key: str, value: Any) -> None:
    check(fault(lambda: used(ModelConfig.from_json(json.dumps({**document, key: value})))))


@given(st.sampled_from(list(MODELS)), st.builds(Shape, *SHAPES, st.booleans()))
@settings(max_examples=300)
def test_any_shape_gives_a_network_or_one_line(name: str, shape: Shape) -> None:
    with torch.device("meta"):
        check(fault(lambda: network(MODELS[name], shape)))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000 + "]" * 20_000,
        '{"name":' * 5_000 + "1" + "}" * 5_000,
        "[" * 200_000,
        '{"name":"cnn","input_shape":[1,8,8],"classes":2,"widths":' + json.dumps([4] * 10_000) + "}",
        '{"name":"cnn","input_shape":[1,8,8],"classes":2,"widths":[9223372036854775808]}',
        '{"name":"resnet","input_shape":[1,8,8],"classes":2,"widths":[4,4],"blocks":[1000,1000]}',
        '{"name":"cnn","input_shape":[1,16777216,16777216],"classes":2}',
        '{"name":"\\ud800","input_shape":[1,8,8],"classes":2}',
        '{"name":"cnn","input_shape":[1,8,8],"classes":1e400}',
        '{"name":"cnn","input_shape":[1,8,8],"classes":NaN}',
    ],
    ids=range(10),
)
def test_what_is_too_much_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        ModelConfig.from_json(text)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 2000


def test_the_largest_that_is_accepted_is_built_on_the_meta_device() -> None:
    model = ModelConfig("cnn", (1, 4096, 4096), 1 << 20, (1 << 14,))
    used(model)
    with torch.device("meta"):
        assert network(model).classifier.in_features == 2048 * 2048 * (1 << 14)


def test_the_text_of_a_model_is_what_it_was_and_options_come_last() -> None:
    expected = (
        '{"name":"cnn","input_shape":[1,8,8],"classes":10,"widths":[16,32],"blocks":[],"group":4,"patch":4,'
        '"vocabulary":0,"factory":"","kernel":7,"expand":6.0}'
    )
    model = ModelConfig("cnn", (1, 8, 8), 10)
    assert model.to_json() == expected
    more = ModelConfig("cnn", (1, 8, 8), 10, options=(("heads", 4), ("bias", True), ("kind", "x"), ("rate", 0.5)))
    assert more.to_json() == expected[:-1] + ',"options":[["heads",4],["bias",true],["kind","x"],["rate",0.5]]}'
    assert ModelConfig.from_json(more.to_json()) == more
    assert len({model, more}) == 2
    assert len(more.to_json()) < LONGEST_JSON
    assert initial_state(model, 0).keys() == initial_state(more, 0).keys()
