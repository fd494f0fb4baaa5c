"""Specs of every method: their labels, and that what a device reads is what the coordinator wrote, or one line."""

import json
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from diastole.models.errors import SpecError
from diastole.models.method import Method
from diastole.models.methods.registry import LONGEST_SPEC, METHODS, build, make_method, read_spec
from diastole.models.methods.supernets.architectures import Architecture, spec_of
from diastole.models.methods.widths.heterofl import Width
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import LONGEST_LABEL, SubModelSpec, labelled
from diastole.models.training import TrainConfig

# Where only widths matter, as measuring costs takes most of the time.
SMALL = ModelConfig("cnn", (1, 8, 8), 3, (8, 16), group=2)
RESNET = ModelConfig("resnet", (3, 8, 8), 3, (8, 16), (2, 1), group=2)
MOBILE = ModelConfig("mobilenet", (3, 8, 8), 3, (8, 16), (2, 1), group=4, kernel=5, expand=3.0)
CNN = ModelConfig("cnn", (1, 8, 8), 3, (32, 64), group=8)

CASES: dict[str, tuple[str, ModelConfig, dict[str, Any], list[str]]] = {
    "diastole": ("diastole", SMALL, {}, ["0.25", "0.5", "1"]),
    "diastole, distilled": ("diastole", SMALL, {"distil": 0.5}, ["0.25", "0.5", "1"]),
    "width": ("width", SMALL, {}, ["0.25", "0.5", "1"]),
    "width, as in the paper": ("width", SMALL, {"masked": True, "scaler": True}, ["0.25", "0.5", "1"]),
    "conv": ("conv", SMALL, {}, ["0.25", "0.5", "1"]),
    "fjord": ("fjord", SMALL, {}, ["0.25", "0.5", "1"]),
    "fjord, distilled": ("fjord", SMALL, {"distil": True}, ["0.25 distil 1", "0.5 distil 1", "distil 1"]),
    "fedrolex": ("fedrolex", SMALL, {}, ["0.25", "0.5", "1"]),
    "splitmix": (
        "splitmix",
        SMALL,
        {},
        [f"0.25 bases {bases}" for bases in ("0", "1", "2", "3", "0-1", "1-2", "2-3", "3-0", "0-1-2-3")],
    ),
    "snnet": ("snnet", CNN, {}, [f"route {number}" for number in (1, 4, 2, 3, 5)]),
    "snnetv2": ("snnetv2", CNN, {"rank": 4}, [f"route {number} rank 4" for number in (1, 4, 3, 2)]),
    "fiarse": ("fiarse", RESNET, {}, ["density 0.0175", "density 0.2148", "1"]),
    "depthfl": ("depthfl", RESNET, {}, ["0.75 stages 1", "0.75 stages 2"]),
    "depthfl, half": ("depthfl", RESNET, {"distillation": 0.5}, ["0.75 stages 1", "0.75 stages 2"]),
    "inclusivefl": ("inclusivefl", RESNET, {}, ["blocks 1", "1"]),
    "inclusivefl, stages": ("inclusivefl", CNN, {}, ["stages 1", "1"]),
    "scalefl": ("scalefl", RESNET, {}, ["0.125 stages 2", "0.375 stages 2", "0.75 stages 2"]),
    "nefl": ("nefl", RESNET, {}, ["0.25 blocks 1-1", "0.5 blocks 1-1", "0.875"]),
    "adaptivefl": ("adaptivefl", RESNET, {}, ["0.25", "0.5", "0.4 start 1", "0.66 start 1", "1"]),
    "ofa": (
        "ofa",
        MOBILE,
        {"pool": 2},
        [
            "blocks 1-1 kernels 3-3 expands 0.75-0.75",
            "blocks 1-1 kernels 5-3 expands 0.75-2.25",
            "blocks 1-1 kernels 3-3 expands 2.25-2.25",
            "blocks 1-1 expands 1.5-1.5",
            "kernels 3-3-5 expands 1.5-2.25-2.25",
            "1",
        ],
    ),
    "superfednas": (
        "superfednas",
        SMALL,
        {"pool": 2},
        ["expands 0.25-0.25", "expands 0.5-0.5", "expands 0.75-1", "1"],
    ),
    "deps": (
        "deps",
        RESNET,
        {"pool": 2},
        ["blocks 1-1 expands 0.25-0.25", "expands 0.5-0.5", "blocks 1-1", "1"],
    ),
    "fedavg": ("fedavg", SMALL, {}, ["1"]),
    "exclusive": ("exclusive", SMALL, {}, ["1"]),
    "smallest": ("smallest", SMALL, {}, ["0.25"]),
    "dedicated": ("dedicated", SMALL, {}, ["1"]),
    "proxy": ("proxy", SMALL, {}, []),
}
"""For each method, with some options: a model, and what the labels of its sizes say behind the method's name."""


@cache
def made(case: str) -> Method:
    method, model, options, _ = CASES[case]
    return make_method(method, model, (1.0, 0.5, 0.25), TrainConfig(batch_size=4), options)


def specs(case: str) -> list[SubModelSpec]:
    return [made(case).whole, *(size.spec for size in made(case).offers())]


def read(text: str) -> tuple[SubModelSpec | None, str]:
    """Return the spec, or what is wrong with it."""
    try:
        return read_spec(text), ""
    except SpecError as error:
        return None, str(error)


def test_every_method_is_here() -> None:
    assert {method for method, *_ in CASES.values()} == set(METHODS)


HEAVY = ("ofa", "superfednas", "deps", "nefl")
SOME = [pytest.param(case, marks=pytest.mark.slow) if case.startswith(HEAVY) else case for case in CASES]


@pytest.mark.parametrize("case", SOME)
def test_labels_are_what_seeds_and_orders_have_always_depended_on(case: str) -> None:
    method, _, _, labels = CASES[case]
    # Baselines are plain federated learning of a width.
    name = "width" if METHODS[method].baseline else method
    assert [size.spec.label for size in made(case).offers()] == [f"{name} {label}" for label in labels]


@pytest.mark.parametrize("case", SOME)
def test_a_device_reads_the_spec_that_the_coordinator_wrote(case: str) -> None:
    model = CASES[case][1]
    for spec in specs(case):
        again = read_spec(spec.to_json())
        assert again == spec
        assert hash(again) == hash(spec)
        with torch.device("meta"):
            modules = [build(model, some) for some in (spec, again)]
        one, other = ({name: p.shape for name, p in module.named_parameters()} for module in modules)
        assert one == other


@pytest.mark.parametrize("case", SOME)
def test_json_says_nothing_that_goes_without_saying(case: str) -> None:
    for spec in specs(case):
        kind = METHODS[spec.method].size
        assert isinstance(spec.options, kind)
        document = json.loads(spec.to_json())
        assert document.keys() == {"method", "label", "options"}
        for name in document["options"]:
            rest = {key: value for key, value in document["options"].items() if key != name}
            less, message = read(json.dumps({**document, "options": rest}))
            assert f"{name}: is missing" in message if less is None else less.options != spec.options


@given(st.floats(0, 1, exclude_min=True))
def test_a_number_survives_json_to_the_bit(width: float) -> None:
    assert read_spec(labelled("width", Width(width), width).to_json()).options.width == width


def test_specs_are_values() -> None:
    assert labelled("width", Width(0.5), 0.5) == labelled("width", Width(0.5), 0.5)
    assert labelled("width", Width(0.5), 0.5) != labelled("fedrolex", Width(0.5), 0.5)
    assert labelled("width", Width(0.5), 0.5) != labelled("width", Width(0.25), 0.5)


def test_a_label_says_what_is_not_all_of_it() -> None:
    def label(**parts: Any) -> str:
        return labelled("any", None, **parts).label

    assert label() == "any 1"
    assert label(width=0.5) == "any 0.5"
    assert label(stages=2) == "any stages 2"
    assert label(width=0.5, stages=0, blocks=(), distil=0.0) == "any 0.5"
    # One of something is not the same as all or none of it.
    assert label(stages=1) == "any stages 1"
    assert label(width=0.5, distil=1.0) == "any 0.5 distil 1"
    assert label(blocks=((0, 2), (0,)), kernels=(3, 5)) == "any blocks 2-1 kernels 3-5"


def test_a_label_may_tell_of_every_block_of_a_deep_network() -> None:
    spec = spec_of("ofa", Architecture(kernels=(5,) * 60, expands=(1.125,) * 60))
    assert read_spec(spec.to_json()).label == f"ofa kernels {'-'.join('5' * 60)} expands {'-'.join(['1.125'] * 60)}"


def document(options: str = "{}", method: str = '"width"', label: str = '"width 1"') -> str:
    return f'{{"method":{method},"label":{label},"options":{options}}}'


def test_options_that_are_not_there_are_the_whole_model() -> None:
    assert read_spec('{"method":"width","label":"width 1"}') == labelled("width", Width())


LONGEST_MESSAGE = 4000
DEEP = "[" * 30_000 + "]" * 30_000
WRONG = [
    (document('{"width":0}'), "width: .*greater than 0, not 0"),
    (document('{"width":-1}'), "width: .*not -1"),
    (document('{"width":1.5}'), "width: .*less than or equal to 1, not 1.5"),
    (document('{"width":NaN}'), "width: .*not nan"),
    (document('{"width":1e999}'), "width: .*not inf"),
    (document('{"width":' + "9" * 4000 + "}"), "width: "),
    (document('{"width":' + "9" * 9000 + "}"), "number"),
    (document('{"width":"wide"}'), "width: .*not 'wide'"),
    (document('{"width":' + DEEP[20_000:-20_000] + "}"), "recursion"),
    (document('{"height":2}'), "height: no such key"),
    (document('{"two\\nlines":2}'), "no such key"),
    (document("[]"), "options: "),
    (document(method="3"), "method: .*not 3"),
    (document(method='"none"'), "unknown method 'none'; known: diastole, width,"),
    (document(method='"two\\nlines"'), r"unknown method 'two\\nlines'"),
    ('{"label":"width 1"}', "method: is missing"),
    ('{"method":"width"}', "label: is missing"),
    (document(label='""'), "label '': expected 1 to"),
    (document(label='"two\\nlines"'), r"label 'two\\nlines': expected .* printable"),
    (document(label='"\\u001b[2J"'), "label .*printable"),
    (document(label='"' + "x" * (LONGEST_LABEL + 1) + '"'), f"label '{'x' * 40}': expected"),
    (document(method='"depthfl"', options='{"stages":-1}'), "stages: .*not -1"),
    (document(method='"depthfl"', options='{"stages":1001}'), "stages: .*not 1001"),
    (document(method='"depthfl"', options='{"config":{"ramp":2}}'), "config.ramp: .*not 2"),
    (document(method='"ofa"', options=f'{{"kernels":{[3] * 1001}}}'), "kernels: .*at most 1000 items"),
    (document(method='"nefl"', options=f'{{"blocks":[{[0] * 1001}]}}'), "blocks.0: .*at most 1000 items"),
    (document(method='"nefl"', options='{"blocks":[["\\ud800"]]}'), "Invalid JSON"),
    ("\ud800", "unicode"),
    ("null", "object"),
    ("7", "object"),
    ("{", "Invalid JSON"),
    ("", "Invalid JSON"),
    (DEEP, "recursion"),
    ("x" * (LONGEST_SPEC + 1), f"of {LONGEST_SPEC + 1} characters; at most {LONGEST_SPEC} are accepted"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[words[:30] for _, words in WRONG])
def test_wrong_json_is_told_on_one_short_line(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        read_spec(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= LONGEST_MESSAGE


def test_a_spec_of_every_method_is_refused_with_an_option_that_it_has_not() -> None:
    for case in CASES:
        for spec in specs(case)[:1]:
            found = json.loads(spec.to_json())
            found["options"]["colour"] = 1
            with pytest.raises(SpecError, match="colour: no such key"):
                read_spec(json.dumps(found))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=3)
)
FIELDS = st.sampled_from(sorted({field.name for row in METHODS.values() for field in fields(row.size)}))


def check(text: str) -> None:
    spec, message = read(text)
    assert not message or message.isprintable()
    assert len(message) <= LONGEST_MESSAGE
    assert spec is None or read_spec(spec.to_json()) == spec


@given(st.text(st.characters(), max_size=40))
@example('{"method":"width","label":"width 1"}')
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    check(text)


@given(st.sampled_from([*METHODS, "none"]), st.text(st.characters(), max_size=9), st.dictionaries(FIELDS, VALUES))
def test_any_document_is_a_spec_or_a_spec_error(method: str, label: str, options: dict[str, object]) -> None:
    check(json.dumps({"method": method, "label": label, "options": options}))
    check(json.dumps({"method": method, "label": "any", "options": options}, ensure_ascii=False))


@given(st.sampled_from([*CASES]), st.randoms(use_true_random=False), st.integers(1, 4))
def test_a_garbled_spec_is_a_spec_or_a_spec_error(case: str, draws: Any, count: int) -> None:
    text = list(draws.choice(specs(case)).to_json())
    for _ in range(count):
        text[draws.randrange(len(text))] = draws.choice('0123456789.-+eE[]{},:"\\ nul\x00\ud800')
    check("".join(text))
