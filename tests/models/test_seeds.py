import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.models.seeds import derive_seed, generator, reference_plan

names = st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4).map(tuple)


@given(names, names)
@settings(deadline=None, max_examples=200)
def test_a_seed_is_63_bits_and_names_what_it_is_for(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert 0 <= derive_seed(*one) < 2**63
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derive_seed(7, 3, "phone-1", "train") == 1477356460314813835


def test_order_and_kind_of_name_matter() -> None:
    seeds = [derive_seed(*key) for key in ((1, 2), (2, 1), ("1", 2), (12,), ("12",), (), ("",), ("", ""), ("ab", "c"))]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed("a", "bc") != derive_seed("ab", "c")


def test_a_name_cannot_pass_for_two() -> None:
    assert derive_seed("a\x1fstr:b") != derive_seed("a", "b")


def test_a_generator_draws_by_its_name_alone() -> None:
    torch.manual_seed(0)
    one = torch.randn(5, generator=generator(1, "x"))
    torch.manual_seed(1)
    assert torch.equal(torch.randn(5, generator=generator(1, "x")), one)
    assert not torch.equal(torch.randn(5, generator=generator(1, "y")), one)


def test_the_reference_plan_uses_one_thread_and_then_what_there_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with reference_plan():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), reference_plan():
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
