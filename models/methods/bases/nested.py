"""Running a module at a narrower width, by slicing its own parameters."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from diastole.models.channels import nested as nested_regions
from diastole.models.channels import within
from diastole.models.dropout import lend_draws
from diastole.models.errors import SpecError
from diastole.models.hollow import hollow
from diastole.models.loading import fill, used
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.made import keep_tied, take_constants
from diastole.models.networks.family import layout, narrowed, network

MOST_WIDTHS = 256
"""The most widths inside one sub-model; for each width a network is built."""

Widths = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(max_length=MOST_WIDTHS)]
"""The widths that a size trains inside its own, as a spec names them: shares of the channels, ascending."""


class Nested(nn.Module):
    """The global model at one width, which is also every narrower model nested in it.

    Its parameters are those of the plain network of its width, by the same names. A narrower network reads the first
    channels of each parameter, as views: nothing is copied (except after a concatenation), and gradients add up in the
    parameters. GroupNorm normalises the first channels as in the whole network and has no running statistics, so the
    widths need none of their own.

    `forward` gives the logits of the full width. A subclass adds `loss` to train narrower widths too.
    """

    def __init__(self, model: ModelConfig, width: float, nested: Sequence[float] = ()) -> None:
        """Make a freshly initialised model of `width`, with `nested` ones that are no wider.

        Raises `SpecError` if one of the widths cannot be built or is not nested in the model.
        """
        super().__init__()
        if wider := [other for other in nested if other > width]:
            raise SpecError(f"nested widths {wider} are larger than the width {width:g} that they are to be inside")
        full = network(model, narrowed(model, width))
        for name, child in full.named_children():
            self.add_module(name, child)
        for name, parameter in full.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        keep_tied(self)
        take_constants(full, self)
        # A plain dictionary, so that torch registers none of them here: these networks only lend their forward passes.
        self._networks: dict[float, nn.Module] = {width: full}
        with hollow():
            self._networks |= {w: network(model, narrowed(model, w)) for w in nested if w != width}
        for net in self._networks.values():
            lend_draws(full, net)
        whole = {name: parameter.shape for name, parameter in full.named_parameters()}
        axes = within(layout(model), whole)
        self._regions = {
            w: nested_regions(axes, whole, {name: parameter.shape for name, parameter in net.named_parameters()})
            for w, net in self._networks.items()
        }
        self.width, self._model = width, model

    @property
    def lent(self) -> list[nn.Module]:
        """The networks that lend their forward passes, the full width's among them."""
        return list(self._networks.values())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]` of the full width."""
        return self.at(x, self.width)

    def plain_form(self) -> nn.Module:
        """Return the plain network of the full width, with these tensors."""
        return fill(network(self._model, narrowed(self._model, self.width)), used(self))

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters of the plain network of the full width."""
        return dict(self.named_parameters())

    def at(self, x: Tensor, width: float) -> Tensor:
        """Return logits `[n, classes]` of one of the nested widths, or of the full one. Raises `KeyError`."""
        parameters = self.tensors()
        views = {name: region.view(parameters[name]) for name, region in self._regions[width].items()}
        net = self._networks[width]
        if net.training != self.training:
            net.train(self.training)
        logits: Tensor = functional_call(net, views, (x,))
        return logits


def inside(width: float, offered: Sequence[float]) -> tuple[float, ...]:
    """Return `width` and the offered widths below it, ascending. Raises `SpecError` if they are too many.

    Args:
        width: of a sub-model.
        offered: all widths on offer, ascending.

    """
    found = tuple(dict.fromkeys([*(other for other in offered if other <= width), width]))
    if len(found) > MOST_WIDTHS:
        raise SpecError(f"{len(found)} widths inside width {width:g}; at most {MOST_WIDTHS} are accepted")
    return found
