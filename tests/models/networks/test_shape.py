"""Shapes: how many channels a share of them is."""

from hypothesis import given
from hypothesis import strategies as st

from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.shape import scaled

groups = st.sampled_from([1, 2, 3, 4, 6, 8])
blocks = st.sampled_from([0, 4, 8, 16])


@given(st.integers(1, 40), groups, blocks, st.lists(st.floats(0.01, 1), min_size=2, max_size=8))
def test_a_larger_share_never_has_fewer_channels(count: int, group: int, block: int, ratios: list[float]) -> None:
    width = count * group
    found = [scaled(width, ratio, group, block) for ratio in (*sorted(ratios), 1.0)]
    assert found == sorted(found)
    assert found[-1] == width
    assert all(each % group == 0 and each >= group for each in found)


@given(st.integers(1, 40), groups, blocks, st.floats(0.01, 0.999))
def test_channels_are_whole_blocks_where_there_is_one(count: int, group: int, block: int, ratio: float) -> None:
    width = count * group
    found, plain = scaled(width, ratio, group, block), scaled(width, ratio, group)
    if block == 0 or (found % block and found == plain):
        assert found == plain
    else:
        assert found % block == 0
    # Whoever keeps a whole block of a power of two's multiple gets blocks.
    if block and group in (1, 2, 4, 8) and width % max(block, group) == 0 and width * ratio >= max(block, group):
        assert found % block == 0


def test_a_block_is_for_all_layers_of_narrower_models() -> None:
    model = ModelConfig("resnet", (3, 8, 8), 10, (24, 48), (1, 1), block=8)
    shapes = [weight.shape[0] for weight in build(model, spec_of(0.4)).parameters() if weight.ndim == 4]
    assert set(shapes) == {8, 16}
    free = [
        w.shape[0] for w in build(ModelConfig("resnet", (3, 8, 8), 10, (24, 48), (1, 1)), spec_of(0.4)).parameters()
    ]
    assert set(free) == {8, 20, 10}


def test_a_model_without_a_block_is_written_as_before() -> None:
    model = ModelConfig("cnn", (3, 8, 8), 10)
    assert "block" not in model.to_json().replace("blocks", "")
    blocked = ModelConfig("cnn", (3, 8, 8), 10, block=8)
    assert ModelConfig.from_json(blocked.to_json()) == blocked
