"""Tests of writing what several threads bring together."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from diastole.server.store.grouped import Grouped


class Slow:
    """Writes only while the gate is open."""

    def __init__(self) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()
        self.groups: list[list[int]] = []

    def write(self, items: Sequence[int]) -> None:
        self.groups.append(list(items))
        self.begun.set()
        assert self.gate.wait(10)
        if -1 in items:
            raise OSError("the disk is full")


def test_what_comes_while_something_is_written_is_written_together() -> None:
    slow = Slow()
    grouped = Grouped(slow.write)
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(grouped.put, 0)
        assert slow.begun.wait(10)
        rest = [threads.submit(grouped.put, number) for number in range(1, 9)]
        while len(grouped._waiting) < 8:
            time.sleep(0.001)
        assert not any(each.done() for each in (first, *rest))
        slow.gate.set()
        assert [each.result(10) for each in (first, *rest)] == [None] * 9
    assert slow.groups[0] == [0]
    assert [sorted(group) for group in slow.groups[1:]] == [list(range(1, 9))]


def test_who_shares_a_write_that_fails_learns_of_it_and_the_next_is_tried() -> None:
    slow = Slow()
    slow.gate.set()
    grouped = Grouped(slow.write)
    with pytest.raises(OSError, match="full"):
        grouped.put(-1)
    grouped.put(1)
    assert slow.groups == [[-1], [1]]
