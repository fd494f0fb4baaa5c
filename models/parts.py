"""Partial training: which parameters of a sub-model are trained if only a part of it is.

Everything below the first layer that is trained then needs no gradients, no optimiser state and no saved activations.
"""

import re
from collections.abc import Iterator

from torch import nn

from diastole.models.errors import SpecError

HEAD, NORMS, STAGES = "head", "norms-and-head", "last-stages"
PARTS = (f"{STAGES}:N", NORMS, HEAD)
"""Every part that this version knows, in words."""

PATTERN = rf"^$|^{HEAD}$|^{NORMS}$|^{STAGES}:[1-9][0-9]{{0,2}}$"
"""What the name of a part looks like; the empty one is the whole."""


def is_part(name: str) -> bool:
    """Return whether there is such a part."""
    return bool(name) and re.fullmatch(PATTERN, name) is not None


def trained(module: nn.Module, part: str) -> frozenset[str]:
    """Return the names of the parameters that are trained if `part` of a sub-model is; of "" those that ever are.

    A sub-model may hold several networks, such as Split-Mix's; the part is that of each.

    * "last-stages:N": the last N stages that the sub-model has, and what runs behind them.
    * "norms-and-head": all normalisation layers, and what runs behind the stages.
    * "head": what runs behind the stages.

    What no network holds, such as the exits of a sub-model, is trained too. A part is empty if there is no network with
    stages, if there are fewer stages, or if one tensor has the weights of several layers (`one_by_one`).

    Args:
        module: of the sub-model.
        part: a name that `is_part` knows, or "".

    """
    able = frozenset(name for name, parameter in module.named_parameters() if parameter.requires_grad)
    if not part:
        return able
    networks = dict(_networks(module))
    if not networks or not getattr(module, "one_by_one", True):
        return frozenset()
    count = int(part.partition(":")[2]) if part.startswith(STAGES) else 0
    still = set[str]()
    for path, network in networks.items():
        stages = network.get_submodule("stages")
        if count > len(list(stages.children())):
            return frozenset()
        still |= {path + name for name in _before(network, count)}
    if part == NORMS:
        still -= set(_norms(module))
    return able - still


def train_only(module: nn.Module, part: str) -> None:
    """Let no gradient reach the parameters outside of a part, in place. Raises `SpecError` if it is empty."""
    names = trained(module, part)
    if not names:
        raise SpecError(f"a {type(module).__name__} has no part {part!r} that could be trained alone")
    for name, parameter in module.named_parameters():
        if name not in names:
            parameter.requires_grad_(False)


def _networks(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost networks that can be taken apart, with what the names of their parameters begin with."""
    if isinstance(getattr(module, "stages", None), nn.ModuleList):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _networks(child, f"{path}{name}.")


def _before(network: nn.Module, count: int) -> Iterator[str]:
    """Yield the names of the parameters before the last `count` stages: children before `stages` serve `enter`."""
    for child, layer in network.named_children():
        if child != "stages":
            yield from (f"{child}.{name}" for name, _ in layer.named_parameters())
            continue
        stages = list(layer.named_children())
        for name, stage in stages[: len(stages) - count]:
            yield from (f"stages.{name}.{each}" for each, _ in stage.named_parameters())
        return


def _norms(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters of normalisation layers."""
    for path, layer in module.named_modules():
        if "Norm" in type(layer).__name__:
            yield from (f"{path}.{name}" for name, _ in layer.named_parameters())
