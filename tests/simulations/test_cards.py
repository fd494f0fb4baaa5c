"""Which devices `[simulation] device` names."""

import pytest
import torch

from diastole.experiments.errors import ExperimentError
from diastole.simulations.cards import devices, home, known


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda cuda", "", "meta", "cuda:0,", "cuda:-1"])
def test_what_names_no_device_is_told_what_does(text: str) -> None:
    with pytest.raises(ValueError, match=r'"cuda", "cuda:1", "mps", or several such as "cuda:0,cuda:1" are accepted'):
        known(text)


def test_cards_are_of_one_kind_and_each_named_once() -> None:
    for text in ("cuda:0,mps", "cpu,cuda", "cpu,cpu"):
        with pytest.raises(ValueError, match=r"several cards must be of one kind|each card once"):
            known(text)
    with pytest.raises(ValueError, match="each card once"):
        known("cuda,cuda:0")
    assert known("cuda:0, cuda:1") == "cuda:0,cuda:1"


def test_the_cpu_is_always_there() -> None:
    assert devices("cpu") == (torch.device("cpu"),)
    assert home("cpu") == torch.device("cpu")


def test_a_card_that_is_not_there_is_one_line() -> None:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(ExperimentError, match=r'this machine.*; use "cpu"$'):
        devices(f"cuda:{there}")
