"""Windows of a signal that goes on."""

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from agents import Agent, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.client.errors import DataError
from diastole.client.sources.cutter import LONGEST_LINE, Cutter
from diastole.client.sources.settings import settings_of
from diastole.client.sources.windows import Windows
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.task import Task, Update
from diastole.models.training import TrainConfig

HEADER = "time,ax,label,ay\n"
COLUMNS = ["data.input=ax,ay"]


def rows(first: int, last: int, label: object = 0) -> str:
    return "".join(f"{k},{k},{label},{-k}\n" for k in range(first, last))


def lines() -> st.SearchStrategy[list[str]]:
    """Rows with labels of two classes or none, and some that cannot be read."""
    row = st.sampled_from(["0,{k},0,7", "0,{k},1,7", "0,{k},,7", "broken", "0,{k},0,nan", "0,{k},-1,7", "1e99,{k},1,7"])
    return st.lists(row, max_size=40).map(lambda them: [each.format(k=k) for k, each in enumerate(them)])


@given(lines(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_windows_are_those_of_a_plain_cut_however_the_bytes_come(
    text: list[str], window: int, hop: int, part: int
) -> None:
    hop = min(hop, window)
    cutter = Cutter(Path("x.csv"), settings_of(COLUMNS, window, hop))
    data = (HEADER + "".join(f"{line}\n" for line in text)).encode()
    for start in range(0, len(data), part):
        cutter.feed(data[start : start + part])
    expected, run = list[tuple[list[float], str]](), list[tuple[float, str]]()
    for line in [*text, "broken"]:
        fields = line.split(",")
        if len(fields) == 4 and "nan" not in fields and fields[2] != "-1":
            run.append((float(fields[1]), fields[2]))
            continue
        for start in range(0, len(run) - window + 1, hop):
            cut = run[start : start + window]
            if len({label for _, label in cut}) == 1 and cut[0][1]:
                expected.append(([value for value, _ in cut], cut[0][1]))
        run = []
    assert len(cutter) == len(expected)
    if expected:
        found = cutter.examples()
        assert found.x[:, 0].tolist() == [values for values, _ in expected]
        assert found.y.tolist() == [int(label) for _, label in expected]


def test_a_file_is_read_on_and_only_the_newest_windows_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "signal.csv"
    path.write_text(HEADER + rows(0, 5))
    source = Windows(path, settings_of([*COLUMNS, "data.newest=3"], 4, 2))
    assert (len(source), source.input_shape) == (1, (2, 4))
    with path.open("a") as file:
        file.write(rows(5, 8) + "8,8")
    assert source.examples().x[-1].tolist() == [[4, 5, 6, 7], [-4, -5, -6, -7]]
    with path.open("a") as file:
        file.write(",0,-8\n" + rows(9, 20))
    assert source.examples().x[:, 0, 0].tolist() == [12, 14, 16]
    # A new file has a header, and no window spans the two.
    path.rename(tmp_path / "old.csv")
    assert len(source) == 3
    path.write_text("ay,label,ax\n" + "".join(f"{-k},1,{k}\n" for k in range(5)))
    assert source.examples().x[-1].tolist() == [[0, 1, 2, 3], [0, -1, -2, -3]]
    assert source.examples().y.tolist() == [0, 0, 1]


def test_a_fifo_is_drained_while_nobody_asks(tmp_path: Path) -> None:
    path = tmp_path / "sensor"
    os.mkfifo(path)
    with closing(Windows(path, settings_of([*COLUMNS, "data.newest=50"], 4, 4))) as source:
        # More than a pipe holds, from writers that come one after another.
        for first in range(0, 20_000, 4000):
            with path.open("w") as file:
                file.write((HEADER if not first else "") + rows(first, first + 4000))
        with path.open("w") as file:
            file.write(rows(0, 4, 1))
        while source.examples().y[-1] != 1 if len(source) else True:
            threading.Event().wait(0.01)
        assert source.examples().x[-2:, 0].tolist() == [[19_996, 19_997, 19_998, 19_999], [0, 1, 2, 3]]
        assert len(source) == 50


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "signal.csv"
    path.write_text("time,ax\n")
    with pytest.raises(DataError, match="has no column 'ay'; there are time, ax"):
        Windows(path, settings_of(COLUMNS, 4))
    path.write_text(HEADER + "0,1,walk,2\n")
    source = Windows(path, settings_of(COLUMNS, 4))
    with pytest.raises(DataError, match=r"no window yet: label 'walk' is no number of a class.*4 rows with one label"):
        source.examples()
    path.write_bytes(b"x" * 2 * LONGEST_LINE)
    with pytest.raises(DataError, match=f"a line goes on beyond {LONGEST_LINE} bytes"):
        len(source)
    with pytest.raises(DataError, match="no such file"):
        Windows(tmp_path / "none.csv", settings_of(COLUMNS, 4))


@pytest.fixture
def signal(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "signal.csv"
    path.write_text(HEADER + rows(0, 16) + rows(16, 32, 1))
    return path


def test_an_agent_trains_on_what_is_there_when_its_task_comes_and_on_no_more_than_it_has_told(signal: Path) -> None:
    model = ModelConfig(name="cnn", input_shape=(2, 8), classes=2, widths=(4,))
    spec, state = spec_of(1.0), initial_state(model, 0)
    source = Windows(signal, settings_of(COLUMNS, 8, 4))
    counts, newest = [], 0.0
    with closing(serve(model=model)) as link:
        device = Agent(link.port, source)
        for number, more in enumerate((1, 20, 2, 1)):
            with signal.open("a") as file:
                file.write(rows(100 * number, 100 * number + 4 * more, 1))
            assert link.wait(1, 60)
            task = Task(f"r{number}-one", number, "one", spec, TrainConfig(), 1)
            *_, update = link.dispatch([task], {spec: state}, None)
            assert isinstance(update, Update)
            counts.append(update.report.examples)
            newest = float(source.examples().x[-1, 0, -1])
    device.join()
    assert device.error is None
    assert newest == 303
    # Six windows when it joined; at the second task so many more that it joined anew. The third may be planned by then.
    assert counts in ([6, 6, 6, 27], [6, 6, 27, 27])


def test_windows_are_contiguous_and_float32(signal: Path) -> None:
    x = Windows(signal, settings_of(COLUMNS, 8, 4)).examples().x
    assert x.dtype == torch.float32
    assert x.is_contiguous()
