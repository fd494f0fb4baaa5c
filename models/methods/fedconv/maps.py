"""The two learned maps of one size: from the global state to a sub-model's, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diastole.models.channels import nested, to_front
from diastole.models.crossing import send_all
from diastole.models.methods.fedconv import convmaps
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.made import move_constants
from diastole.models.networks.family import layout
from diastole.models.state import State

Kernels = dict[str, Tensor]


class Maps:
    """The two maps of one size, which the server keeps.

    Attributes:
        module: a module of the size, on the meta device.
        shrink: kernels of the compression map, `[P, h, w]` for each tensor that changes its shape, by its name.
        grow: kernels of the dilation map, likewise.

    """

    def __init__(
        self,
        model: ModelConfig,
        module: nn.Module,
        shapes: Mapping[str, torch.Size],
        slopes: tuple[float, float],
        times: int,
    ) -> None:
        """Make maps that take the first channels and put them back.

        Args:
            model: the global model.
            module: of the size.
            shapes: of the global tensors, by name.
            slopes: of the activation, for positive and for negative values.
            times: how often the activation is applied.

        """
        self.module, self._large, self._slopes, self._times = module, shapes, slopes, times
        self._small = {name: weight.shape for name, weight in module.named_parameters()}
        changed = [name for name in shapes if self._small[name] != shapes[name]]
        places = nested(layout(model), shapes, self._small)
        self._orders = {name: order for name in changed if (order := to_front(places[name], shapes[name]))}
        self.shrink, self.grow = (
            {name: convmaps.slice_kernel(shapes[name], self._small[name]) for name in changed} for _ in range(2)
        )

    def place(self, device: torch.device) -> None:
        """Have the kernels, and the module's constants, on a device."""
        move_constants(self.module, device)
        self.shrink, self.grow = send_all(self.shrink, device), send_all(self.grow, device)

    def compress(self, state: State) -> State:
        """Return the global state under the compression map; a tensor of unchanged shape is copied."""
        small = {}
        for name, weight in state.items():
            if name in self.shrink:
                ordered = self._orders[name][0].view(weight) if name in self._orders else weight
                image = self._activate(convmaps.compress(convmaps.images(ordered), self.shrink[name]))
                small[name] = convmaps.weights(image, self._small[name])
            else:
                small[name] = weight
        return small

    def dilate(self, weights: Mapping[str, Tensor]) -> State:
        """Return weights of the size under the dilation map; a linear map also takes their sums and differences."""
        grown = {}
        for name, weight in weights.items():
            if name in self.grow:
                image = self._activate(convmaps.dilate(convmaps.images(weight), self.grow[name]))
                large = convmaps.weights(image, self._large[name])
                grown[name] = self._orders[name][1].view(large) if name in self._orders else large
            else:
                grown[name] = weight
        return grown

    def _activate(self, image: Tensor) -> Tensor:
        return convmaps.activate(image, self._slopes, self._times)
