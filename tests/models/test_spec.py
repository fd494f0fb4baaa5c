import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.models.errors import SpecError
from diastole.models.spec import SubModelSpec


@given(st.text(), st.floats(0, 1, exclude_min=True))
@settings(deadline=None, max_examples=100)
def test_a_spec_survives_json_to_the_bit(method: str, width: float) -> None:
    spec = SubModelSpec(method, width)
    again = SubModelSpec.from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)
    assert json.loads(spec.to_json()) == {"method": method} | ({"width": width} if width != 1 else {})


def test_specs_are_values() -> None:
    assert SubModelSpec("width", 0.5) == SubModelSpec("width", 0.5)
    assert SubModelSpec("width", 0.5) != SubModelSpec("conv", 0.5)
    assert SubModelSpec("width", 0.5) != SubModelSpec("width", 0.25)


def test_a_label_says_what_is_not_all_of_it() -> None:
    assert SubModelSpec("width", 0.5).label == "width 0.5"
    assert SubModelSpec("conv").label == "conv 1"
    assert SubModelSpec("depth", stages=2).label == "depth stages 2"
    # 1 is not all of it where 0 is.
    assert SubModelSpec("stitched", route=1).label == "stitched route 1"
    # One of something is not the same as all or none of it.
    assert SubModelSpec("depth", stages=1).label == "depth stages 1"
    assert SubModelSpec("taught", 0.5, distil=1.0).label == "taught 0.5 distil 1"
    assert SubModelSpec("skip", blocks=((0, 2), (0,))).label == "skip blocks 2-1"


def test_a_spec_without_a_width_is_the_whole_model() -> None:
    assert SubModelSpec.from_json('{"method":"width"}') == SubModelSpec("width", 1.0)


WRONG = [
    ('{"method":"width","width":0}', "width: .*greater than 0, not 0"),
    ('{"method":"width","width":-1}', "width: .*not -1"),
    ('{"method":"width","width":1.5}', "width: .*less than or equal to 1, not 1.5"),
    ('{"method":"width","width":NaN}', "width: .*not nan"),
    ('{"method":"width","width":"wide"}', "width: .*not 'wide'"),
    ('{"method":3}', "method: .*not 3"),
    ('{"width":0.5}', "method: is missing"),
    ('{"method":"width","height":2}', "height: no such key"),
    ('{"width":2,"height":2}', "method: is missing.*width: .*height: no such key"),
    ("null", "object"),
    ("7", "object"),
    ("{", "Invalid JSON"),
    ("", "Invalid JSON"),
    ('{"method":\n"wi\ndth"', "Invalid JSON"),
    ('{"method":"width","two\\nlines":1}', "no such key"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_wrong_json_is_told_on_one_line_with_the_value(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        SubModelSpec.from_json(text)
    assert len(str(caught.value).splitlines()) == 1
    assert repr(text) in str(caught.value)


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=200)
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    message = ""
    try:
        SubModelSpec.from_json(text)
    except SpecError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1
