"""Recomputation: a block keeps what enters it, and runs once more when the backward pass needs its activations.

`torch.utils.checkpoint` would do, but it draws from torch's global generator where dropout here draws from the task's,
and it cannot see weights that a method puts into a module for one forward pass only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diastole.models.errors import ModelError

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a module, none inside of another.

    A block is a module of several layers in a list of such modules, such as a stage of blocks; a sequence of layers is
    one block. What has such a list inside is not a block itself, unless it is an item of a list.
    """
    return list(dict.fromkeys(_blocks(module, listed=False)))


def _blocks(module: nn.Module, listed: bool) -> Iterator[nn.Module]:
    for child in module.children():
        if not _composite(child):
            continue
        if isinstance(child, _LISTS):
            if any(map(_composite, child.children())):
                yield from _blocks(child, listed=True)
            elif isinstance(child, nn.Sequential):
                yield child
        elif not listed and any(isinstance(each, _LISTS) and _composite(each) for each in child.modules()):
            inside = list(_blocks(child, listed=False))
            yield from inside or [child]
        else:
            yield child


def _composite(module: nn.Module) -> bool:
    """Return whether a module has several layers."""
    layers = [child for name, child in module.named_children() if name != "parametrizations"]
    return len(layers) > 1 or any(map(_composite, layers))


@contextmanager
def recomputed(module: nn.Module, draws: torch.Generator) -> Iterator[None]:
    """Let every block of `module` be computed twice, in steps inside of the `with` block.

    Args:
        module: changed in place for as long as that.
        draws: of dropout; a block finds it the second time as it was the first time.

    """
    found = blocks(module)
    before = [vars(block).get("forward") for block in found]
    for block in found:
        vars(block)["forward"] = _Twice(block, draws)
    try:
        yield
    finally:
        for block, forward in zip(found, before, strict=True):
            del vars(block)["forward"]
            if forward is not None:
                vars(block)["forward"] = forward


class _Twice:
    """A block's forward pass that keeps no activations."""

    def __init__(self, block: nn.Module, draws: torch.Generator) -> None:
        self.block, self.draws = block, draws
        self.forward, self.again = block.forward, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.again or kwargs or not torch.is_grad_enabled() or not all(isinstance(arg, Tensor) for arg in args):
            return self.forward(*args, **kwargs)
        given = self.given()
        if not any(tensor.requires_grad for tensor in (*args, *given.values())):
            return self.forward(*args)
        return _Recompute.apply(self, list(given), len(args), *args, *given.values())  # type: ignore[no-untyped-call]

    def given(self) -> dict[str, Tensor]:
        """Return what the block computes with beside its inputs, by path.

        These are its parameters, and tensors that somebody has put in the place of some.
        """
        found: dict[str, Tensor] = dict(self.block.named_parameters())
        for path, layer in self.block.named_modules():
            for name, value in vars(layer).items():
                if isinstance(value, Tensor) and value.requires_grad:
                    found[f"{path}.{name}" if path else name] = value
        return found

    def run(self, args: list[Tensor], given: dict[str, Tensor]) -> Any:
        """Run the block on detached inputs, once more, with the tensors that it had the first time."""
        self.again = True
        try:
            if all(isinstance(tensor, nn.Parameter) for tensor in given.values()):
                return self.forward(*args)
            return functional_call(self.block, given, tuple(args))
        finally:
            self.again = False


class _Recompute(torch.autograd.Function):
    """One block."""

    @staticmethod
    def forward(ctx: Any, twice: _Twice, names: list[str], count: int, *tensors: Tensor) -> Any:
        ctx.twice, ctx.names, ctx.count, ctx.state = twice, names, count, twice.draws.get_state()
        ctx.save_for_backward(*tensors)
        result = twice.forward(*tensors[:count])
        several = isinstance(result, tuple) and all(isinstance(each, Tensor) for each in result)
        if not isinstance(result, Tensor) and not several:
            raise ModelError(f"a block that gives a {type(result).__name__} cannot be recomputed; expected tensors")
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        twice, tensors = ctx.twice, ctx.saved_tensors
        args = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors[: ctx.count]]
        given = {
            name: tensor if isinstance(tensor, nn.Parameter) else tensor.detach().requires_grad_(tensor.requires_grad)
            for name, tensor in zip(ctx.names, tensors[ctx.count :], strict=True)
        }
        now = twice.draws.get_state()
        twice.draws.set_state(ctx.state)
        with torch.enable_grad():
            result = twice.run(args, given)
        twice.draws.set_state(now)
        results = result if isinstance(result, tuple) else (result,)
        wanted = [tensor for tensor in (*args, *given.values()) if tensor.requires_grad]
        pairs = [(r, g) for r, g in zip(results, gradients, strict=True) if g is not None and r.requires_grad]
        found: Iterator[Tensor | None] = iter(
            torch.autograd.grad([r for r, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
            if pairs
            else [None] * len(wanted)
        )
        return None, None, None, *(next(found) if t.requires_grad else None for t in (*args, *given.values()))
