"""Pictures as files, and labels at the ends of lines."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diastole.experiments.errors import ExperimentError
from diastole.experiments.report.figures import KINDS, apart, kinds_of, label_ends, rendered, write_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lines(count: int) -> "Figure":
    from matplotlib.figure import Figure

    found = Figure(figsize=(4, 3))
    axes = found.subplots()
    for number in range(count):
        axes.plot([1, 2, 3], [0, number, number % 3], label=f"line {number}")
    return found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 1 / 12))
def test_labels_move_apart_and_no_more_than_they_must(wanted: list[float], step: float) -> None:
    wanted = sorted(wanted)
    found = apart(wanted, step)
    assert all(step / 2 - 1e-9 <= place <= 1 - step / 2 + 1e-9 for place in found)
    gaps = [after - before for before, after in pairwise(found)]
    assert all(gap >= step - 1e-9 for gap in gaps)
    # One that touches neither a neighbour nor an edge is where it wants to be.
    free = [True, *(gap > step + 1e-6 for gap in gaps), True]
    for number, (place, want) in enumerate(zip(found, wanted, strict=True)):
        if free[number] and free[number + 1] and step / 2 + 1e-6 < place < 1 - step / 2 - 1e-6:
            assert place == pytest.approx(want, abs=1e-6)


def test_labels_stand_at_the_ends_unless_there_is_no_room() -> None:
    few = lines(4).axes[0]
    assert label_ends(few, 2.4)
    assert {text.get_text(): text.get_color() for text in few.texts} == {
        line.get_label(): line.get_color() for line in few.lines[:4]
    }
    # Level with the line's end where nothing else is: line 2 ends highest.
    top = few.texts[-1]
    assert top.get_text() == "line 2"
    assert few.transAxes.transform((0, top.get_position()[1]))[1] == pytest.approx(few.transData.transform((0, 2))[1])
    many = lines(40).axes[0]
    assert not label_ends(many, 2.4)
    assert not many.texts


def test_each_kind_is_written_whole_and_stale_ones_go(tmp_path: Path) -> None:
    for kind, start in zip(KINDS, (b"\x89PNG", b"%PDF", b"<?xml"), strict=True):
        assert rendered(lines(2), kind).startswith(start)
        assert rendered(lines(2), kind) == rendered(lines(2), kind)
    figure = lines(2)
    assert [path.name for path in write_figures(tmp_path, {"a": figure, "b": figure}, ("png", "svg"))] == [
        *("a.png", "a.svg", "b.png", "b.svg")
    ]
    write_figures(tmp_path, {"a": figure, "b": None}, kinds_of("pdf, png,pdf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png"]
    with pytest.raises(ExperimentError, match="figures: 'jpg' is not drawn; accepted: png, pdf, svg"):
        kinds_of("png,jpg")
