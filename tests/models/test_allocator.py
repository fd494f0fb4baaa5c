"""Tests of what the allocator is told, in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
from diastole.models.allocator import give_back, keep_pages, share_pages
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
assert keep_pages(4 << 20, 32 << 20) and share_pages(2)
small, large = [], []
for _ in range(200):
    large.append(b"x" * (1 << 18))
    small.append(b"y" * 5000)
del large
held = resident()
give_back()
print(held - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_lies_free_between_pieces_in_use_goes_back() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(found.stdout) > 200 * (1 << 18) * 0.9
