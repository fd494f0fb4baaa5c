"""How HeteroFL trains what it slices: the scaler and the masked cross-entropy (Diao et al., ICLR 2021, and their code).

The scaler: in training, what a layer gives is divided by the share of its channels that the sub-model has, so that
activations are as large at every width. A normalisation after the layer undoes it, but for its epsilon.

The masked cross-entropy: on a device, the logits of classes that it has no examples of are zero in the loss, so that
nothing moves the rows of the classifier that belong to them. The server averages each row over the devices that have
examples of its class.

Devices do not tell the server which classes they have. The server takes a row that comes back as it was sent for one
that no example has trained. So devices send nothing more, but the server can infer which classes a device lacks. (If
the gradients of all examples of a row round to zero, the row also comes back as it was sent, and is not averaged.)
"""

from functools import partial

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from diastole.models.coordinates import Contribution, Patch, Scalars
from diastole.models.crossing import fetch, send
from diastole.models.errors import SpecError
from diastole.models.hollow import hollow
from diastole.models.methods.bases.nested import Nested
from diastole.models.methods.bases.selected import Selected
from diastole.models.methods.registry import Conditions
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import classifier, narrowed, network
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.state import State
from diastole.models.training import Objective, Step


# Without slots, because only one base of a class may have them.
@validated(frozen=True, config=STRICT)
class HeteroConfig:
    """How devices train.

    Attributes:
        masked: whether devices train only the classes that they have examples of.
        scaler: whether devices train with activations as large as in the whole model.

    """

    masked: bool = False
    scaler: bool = False


@validated(frozen=True, config=STRICT)
class Width:
    """A size of HeteroFL.

    Attributes:
        width: share of the channels of every layer.
        masked: devices train only the classes that they have examples of.
        scaler: devices train with activations as large as in the whole model.

    """

    width: float = Field(default=1.0, gt=0, le=1)
    masked: bool = False
    scaler: bool = False


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the global model at a width, plain or trained as HeteroFL does. Raises `SpecError`."""
    size: Width = spec.options
    if size.masked or size.scaler:
        return HeteroFL(model, size.width, size.masked, size.scaler)
    return network(model, narrowed(model, size.width))


class HeteroFL(Nested, Objective):
    """The plain network of a width, trained as HeteroFL does; in evaluation it is that network."""

    def __init__(self, model: ModelConfig, width: float, masked: bool, scaler: bool) -> None:
        """Make a freshly initialised network. Raises `SpecError` if it cannot be built."""
        super().__init__(model, width)
        self.masked = masked
        if scaler:
            with hollow():
                whole = network(model)
            for name, layer in self._networks[width].named_modules():
                if isinstance(layer, _ConvNd | nn.Linear | nn.Embedding):
                    share = _outputs(layer) / _outputs(whole.get_submodule(name))
                    if share < 1:
                        layer.register_forward_hook(partial(_enlarge, share))

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the mean loss; if masked, the logits of classes without any example are zero."""
        logits = self(x)
        if self.masked:
            absent = torch.ones_like(logits[0], dtype=torch.bool).index_fill(0, step.labels, False)
            logits = logits.masked_fill(absent, 0.0)
        return step.criterion.mean(logits, y)


class Masking(Selected):
    """A method with optional masks; a masked contribution covers only the rows of the classifier that have changed.

    A row is the weights and the bias of a class. Everything else is covered as without masks.
    """

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values back where they came from; with masks, leave out rows that came back as they were sent."""
        found = super().dilate(state, spec)
        return trained(found, self._state, classifier(self._model)) if spec.options.masked else found


def check(config: HeteroConfig, conditions: Conditions) -> None:
    """Raise `SpecError` if devices would move rows that no example trains."""
    if config.masked and conditions.training.weight_decay:
        raise SpecError("masked = true needs weight_decay = 0: decay moves rows that no example trains")


def classes(config: HeteroConfig) -> str:
    """Return what one class an example is needed for."""
    return "masked = true" if config.masked else ""


def check_head(config: HeteroConfig, model: ModelConfig) -> None:
    """Raise `SpecError` if no layer of the model has rows of classes to mask."""
    if config.masked and not classifier(model):
        raise SpecError("masked = true needs a model that returns the logits of a linear layer as they are")


def trained(contribution: Contribution, state: State, head: str) -> Contribution:
    """Return a contribution without the classifier's rows that equal those of the global state.

    Args:
        contribution: of one device, with all of the classifier's rows.
        state: the global state, of which the device was sent a part.
        head: the classifier's path.

    """
    rows = {name: contribution[name] for name in (f"{head}.weight", f"{head}.bias") if name in contribution}
    moved = [patch.values != patch.region.view(state[name]) for name, patch in rows.items()]
    (rowed,) = fetch([torch.cat([scalars.view(len(scalars), -1) for scalars in moved], 1).any(1)])
    mine = rowed.bool()
    if mine.all():
        return contribution
    some = {}
    for name, patch in rows.items():
        places = patch.region.view(torch.arange(state[name].numel()).view(state[name].shape))
        at = send(mine.nonzero().flatten(), patch.values.device)
        some[name] = Patch(Scalars(places[mine].flatten()), patch.values[at].flatten())
    return {**contribution, **some}


def _outputs(layer: nn.Module) -> int:
    """Return how many channels a layer writes, of each of its groups if it is a transposed convolution."""
    shape = layer.get_parameter("weight").shape
    return shape[1 if isinstance(layer, _ConvTransposeNd | nn.Embedding) else 0]


def _enlarge(share: float, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Divide a layer's output in training by `share`, in place; no gradient needs the old values."""
    if layer.training:
        output.div_(share)
