"""Draws inside of a user's own code, by functions instead of layers: they come from the task's seed too."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diastole.models.crossing import CPU, send
from diastole.models.dropout import Dropout
from diastole.models.watching import Watching

DRAWS = "_diastole_draws"


class Draws(Dropout):
    """Has the generator of a module whose `forward` draws for itself. Without one, draws are the same every time."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.modes: list[_Seeded] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`: a sequence of layers calls all that it has."""
        return x


def seed_draws(module: nn.Module) -> None:
    """Let what a module's `forward` draws in training come from the generator that `draw_from` gives.

    That is the dropout inside of nn.LSTM and nn.MultiheadAttention, functional.dropout, stochastic depth, noise.
    """
    module.add_module(DRAWS, Draws())
    module.register_forward_pre_hook(_enter)
    module.register_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, _: Any) -> None:
    draws = getattr(module, DRAWS)
    if module.training:
        mode = _Seeded(draws.draws or torch.Generator().manual_seed(0))
        mode.__enter__()  # type: ignore[no-untyped-call]
        draws.modes.append(mode)


def _leave(module: nn.Module, *_: Any) -> None:
    modes = getattr(module, DRAWS).modes
    if modes:
        modes.pop().__exit__(None, None, None)


class _Seeded(Watching):  # type: ignore[no-untyped-call]
    """Gives every operator that draws at random a CPU generator."""

    def __init__(self, draws: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draws = draws

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **given)
        if func is torch.ops.aten.native_dropout.default:
            return self._dropped(*args)
        if func._overloadname in WITH and hasattr(func.overloadpacket, WITH[func._overloadname]):
            func = getattr(func.overloadpacket, WITH[func._overloadname])
        if not any(argument.name == "generator" for argument in func._schema.arguments):
            return func(*args, **given)
        # Draws are made on the CPU, so that they are the same on every device.
        given["generator"] = self._draws
        tensors = [each for each in args if isinstance(each, Tensor)]
        device = tensors[0].device if tensors else given.get("device")
        if device is None or torch.device(device).type == "cpu":
            return func(*args, **given)
        if "device" in given:
            given["device"] = torch.device("cpu")
        drawn = func(*(send(each, CPU) if isinstance(each, Tensor) else each for each in args), **given)
        there = send(drawn, torch.device(device))
        return args[0].copy_(there) if func._schema.is_mutable else there

    def _dropped(self, x: Tensor, share: float, train: bool | None) -> tuple[Tensor, Tensor]:
        """Return what is left of `x`, scaled, and where."""
        if train is False or not share:
            return x.clone(), torch.ones_like(x, dtype=torch.bool)
        kept = send(torch.empty(x.shape).bernoulli_(1 - share, generator=self._draws), x.device)
        return x * kept.to(x.dtype) / max(1 - share, 1e-12), kept.bool()


WITH = {
    "default": "generator",
    "low": "low_generator",
    "low_dtype": "low_generator_dtype",
    "Tensor": "Tensor_generator",
}
"""Overloads of operators that take a generator, by those that take none."""
