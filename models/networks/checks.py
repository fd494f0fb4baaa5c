"""What networks ask of a configuration and of a shape."""

from diastole.models.errors import ModelError, SpecError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.shape import Shape


def check_widths(model: ModelConfig) -> None:
    """Raise `ModelError` if the widths are not multiples of the normalisation group."""
    if not model.widths or any(width < 1 or width % model.group for width in model.widths):
        raise ModelError(f"model {model.name}: widths {list(model.widths)} must be multiples of group {model.group}")


def check_images(model: ModelConfig) -> None:
    """Raise `ModelError` if examples are not images."""
    if len(model.input_shape) != 3 or min(model.input_shape) < 1:
        raise ModelError(
            f"model {model.name}: input_shape {list(model.input_shape)}; expected [channels, height, width]"
        )


def check_blocks(model: ModelConfig) -> None:
    """Raise `ModelError` unless there is a number of blocks for each stage."""
    if len(model.blocks) != len(model.widths) or min(model.blocks) < 1:
        raise ModelError(
            f"model {model.name}: blocks {list(model.blocks)} must give a number of blocks >= 1 "
            f"for each of the {len(model.widths)} widths"
        )


def check_first_blocks(shape: Shape) -> None:
    """Raise `SpecError` if a stage lacks its first block, which changes the shape of the map."""
    if any(0 not in kept for kept in shape.blocks):
        raise SpecError(f"blocks {[list(kept) for kept in shape.blocks]}: the first block of a stage cannot be skipped")


def check_shape(model: ModelConfig, shape: Shape, full: Shape) -> None:
    """Raise `SpecError` unless a network of `shape` is a part of the global model, which has the shape `full`."""
    widths, blocks = shape.widths, shape.blocks
    if not 0 < len(widths) <= len(full.widths) or any(
        width % model.group or not 0 < width <= most for width, most in zip(widths, full.widths, strict=False)
    ):
        raise SpecError(
            f"widths {list(widths)}: expected multiples of {model.group}, for the first stages at most "
            f"{list(full.widths)}"
        )
    stages = len(blocks) if full.sets else min(len(widths), len(full.blocks))
    if (
        len(blocks) != stages
        or len(blocks) > len(full.blocks)
        or any(
            list(kept) != [block for block in every if block in kept]
            for kept, every in zip(blocks, full.blocks, strict=False)
        )
    ):
        raise SpecError(f"blocks {[list(kept) for kept in blocks]}: there are {[list(every) for every in full.blocks]}")
