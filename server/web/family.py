"""The family of a run's sub-models: the layers of the global network, and what each sub-model holds of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from diastole.models.hollow import hollow
from diastole.models.method import Size
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.proto.errors import DiastoleError

MOST_LAYERS, MOST_SIZES = 200, 24


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with weights: its name, its kind, its outputs (channels or units) and its parameters."""

    name: str
    kind: str
    outputs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Kin:
    """A sub-model.

    Attributes:
        label: of its spec.
        parameters: in all.
        macs: multiply-accumulates of a forward pass for one example.
        memory: bytes that training takes.
        payload: bytes that are sent to a device.
        outputs: of each layer of the global network, as many as it has there; 0 for a layer that it lacks.
        held: likewise the parameters.
        own: parameters in layers that the global network has not.

    """

    label: str
    parameters: int
    macs: int
    memory: int
    payload: int
    outputs: tuple[int, ...]
    held: tuple[int, ...]
    own: int


@dataclass(frozen=True, slots=True)
class Family:
    """The layers of the global network, its parameters, and the sub-models, smallest first."""

    label: str
    layers: tuple[Layer, ...]
    parameters: int
    sizes: tuple[Kin, ...]
    more: int = 0


def family_of(model: ModelConfig, whole: SubModelSpec, sizes: Sequence[Size]) -> Family | None:
    """Return the family of a run's exported sizes; None for a network that cannot be built without values."""
    shown = [size for size in sizes if size.exported] or list(sizes)
    try:
        with hollow():
            network = build(model, whole)
            layers = _layers(network)
            found = [(size, _layers(build(model, size.spec))) for size in shown[:MOST_SIZES]]
    except (DiastoleError, RuntimeError, NotImplementedError):
        return None
    kept = dict(list(layers.items())[:MOST_LAYERS])
    total = sum(each.numel() for each in network.parameters())
    return Family(
        whole.label, tuple(kept.values()), total, tuple(_kin(kept, *each) for each in found), len(shown) - len(found)
    )


def _kin(layers: dict[str, Layer], size: Size, mine: dict[str, Layer]) -> Kin:
    blank = Layer("", "", 0, 0)
    there = [mine.get(name, blank) for name in layers]
    return Kin(
        size.spec.label,
        size.cost.parameters,
        size.cost.forward_macs,
        size.cost.memory,
        size.cost.bytes_down,
        tuple(layer.outputs for layer in there),
        tuple(layer.parameters for layer in there),
        sum(layer.parameters for name, layer in mine.items() if name not in layers),
    )


def _layers(module: nn.Module) -> dict[str, Layer]:
    """Return the modules that have a matrix or a kernel of weights of their own, by name."""
    outputs, found = dict[str, int](), dict[str, Layer]()
    # A state dict has whole weights, of which a module may train parts.
    for name, tensor in module.state_dict().items():
        if tensor.ndim > 1:
            outputs.setdefault(name.rpartition(".")[0], tensor.shape[0])
    for name, part in module.named_modules():
        if name in outputs and (own := [each.numel() for each in part.parameters(recurse=False)]):
            found[name] = Layer(name, type(part).__name__, outputs[name], sum(own))
    return found
