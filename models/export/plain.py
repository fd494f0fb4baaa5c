"""A trained sub-model as ordinary layers: nothing of how it was trained, and nothing that depends on its values."""

from copy import deepcopy
from typing import Protocol, runtime_checkable

from torch import nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


@runtime_checkable
class Trainable(Protocol):
    """A module that is trained in another form than it is used in."""

    def plain_form(self) -> nn.Module:
        """Return a module of ordinary layers with the same outputs in evaluation mode; it may share tensors."""
        ...


def plain(module: nn.Module) -> nn.Module:
    """Return a copy of a trained module, in evaluation mode, in which every `Trainable` part is its plain form.

    Batch normalisations with statistics are folded into the layers before them, if the module can be traced.
    """
    copied = _plain(deepcopy(module)).eval().requires_grad_(False)
    return _folded(copied) if any(map(_fixed, copied.modules())) else copied


def _plain(module: nn.Module) -> nn.Module:
    if isinstance(module, Trainable):
        module = module.plain_form()
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    if getattr(module, "inplace", False) is True:
        # Whoever looks at what a layer gives must find it as it was.
        module.inplace = False  # type: ignore[assignment]
    return module


def _fixed(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _folded(module: nn.Module) -> nn.Module:
    """Return the module with batch normalisations folded; the same one if it cannot be traced."""
    try:
        graph = symbolic_trace(module)
    except Exception:  # noqa: BLE001 (the user's code may do what cannot be traced)
        return module
    for node in list(graph.graph.nodes):
        _fold(graph, node)
    graph.graph.lint()
    graph.recompile()
    graph.delete_all_unused_submodules()
    return graph.eval()


def _fold(graph: GraphModule, node: Node) -> None:
    """Fold one normalisation into the layer whose outputs nothing else reads, in place."""
    before = node.args[0] if node.op == "call_module" and node.args else None
    if not isinstance(before, Node) or before.op != "call_module" or len(before.users) > 1:
        return
    layer, norm = graph.get_submodule(str(before.target)), graph.get_submodule(str(node.target))
    calls = [str(other.target) for other in graph.graph.nodes if other.op == "call_module"]
    once = calls.count(str(before.target)) == 1
    if not (isinstance(norm, _BatchNorm) and _fixed(norm) and once):
        return
    made: nn.Module
    if isinstance(layer, _ConvNd):
        made = fuse_conv_bn_eval(layer, norm, transpose=layer.transposed)
    elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        made = fuse_linear_bn_eval(layer, norm)
    else:
        return
    graph.set_submodule(str(before.target), made)
    node.replace_all_uses_with(before)
    graph.graph.erase_node(node)


def parameter_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters."""
    return sum(parameter.nbytes for parameter in module.parameters())
