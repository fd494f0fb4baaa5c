"""A signal whose windows overlap is divided into windows to train on and windows for a test."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.client.scoring import divided
from diastole.client.sources.cutter import Cutter
from diastole.client.sources.opening import opened
from diastole.client.sources.settings import settings_of
from diastole.client.sources.source import DataSource, Divided, Fixed
from diastole.client.sources.stretches import Stretches
from diastole.client.sources.windows import Windows
from diastole.models.training import Examples


def rows_of(examples: Examples) -> set[int]:
    """Return the rows that windows hold, each of which is its number."""
    return {int(value) for value in examples.x.flatten().tolist()}


def lines(first: int, last: int) -> str:
    return "".join(f"{row},0\n" if row % 17 else "no row\n" for row in range(first, last))


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 0.9), st.integers(1, 400))
def test_no_row_is_in_windows_of_both_sides(window: int, hop: int, share: float, part: int) -> None:
    cutter = Cutter(Path("x.csv"), settings_of([], window, min(hop, window), share))
    text = "ax,label\n" + lines(0, 200)
    trained, tested = set[int](), set[int]()
    for start in range(0, len(text), part):
        # As the signal goes on, too: what was tested on is not trained on later.
        cutter.feed(text[start : start + part].encode())
        trained |= rows_of(cutter.examples()) if len(cutter) else set()
        tested |= rows_of(cutter.kept())
    assert not trained & tested


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 0.9))
def test_the_share_is_the_one_that_was_asked_for_and_a_tenth_is_lost_at_most(
    window: int, hop: int, share: float
) -> None:
    turns = Stretches.of(window, min(hop, window), share)
    used = turns.training + turns.test
    sides = [turns.side(number) for number in range(3 * (used + 2 * turns.gap))]
    assert sides.count("training") == 3 * turns.training
    assert sides.count("test") == 3 * turns.test
    assert abs(turns.test / used - share) <= 0.5 / used + 1e-9 or turns.test == 1
    assert 2 * turns.gap <= used / 10


def test_without_a_share_every_window_is_trained_on() -> None:
    assert {Stretches.of(128, 1, 0.0).side(number) for number in range(1000)} == {"training"}


def test_a_signal_a_finished_table_and_a_source_of_ones_own_divide_themselves(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    import gzip

    path = tmp_path / "kitchen.csv"
    text = "ax,label\n" + "".join(f"{row},0\n" for row in range(200))
    path.write_text(text)
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(text.encode()))
    settings = settings_of([], 4, 2, 0.25)
    found = []
    for name in ("kitchen.csv", "table.csv.gz"):
        with opened(str(tmp_path / name), settings) as (_, source):
            given, kept = divided(source, 0.25, "phone")
            examples, held = given.examples(), kept()
        assert isinstance(source, Divided)
        assert len(held) > 0
        assert not rows_of(examples) & rows_of(held)
        found.append((examples.x.tolist(), held.x.tolist()))
    assert found[0] == found[1]
    # The same again at the next start, and when a file is written anew.
    source = Windows(path, settings)
    path.write_text(text[:20])
    assert len(source) > 0
    path.write_text(text)
    assert source.kept().x[: len(held)].tolist() == found[0][1]
    plain: DataSource = Fixed(held)
    assert not isinstance(plain, Divided)


def test_a_signal_may_have_no_header_yet(tmp_path: Path) -> None:
    path = tmp_path / "kitchen.csv"
    path.write_text("")
    source, kept = divided(Windows(path, settings_of([], 4, 2, 0.25)), 0.25, "phone")
    assert (len(source), len(kept())) == (0, 0)
    path.write_text("ax,label\n" + "".join(f"{row},0\n" for row in range(200)))
    assert (len(source) > 0, len(kept()) > 0) == (True, True)
