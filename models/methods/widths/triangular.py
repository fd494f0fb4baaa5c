"""Nested networks in which a smaller one is an exact part of a larger one: no channel reads a later width's.

They are the Any-Width Networks of Vu, Eder, Price and Frahm (CVPR Workshops 2020).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from diastole.models.channels import counts, within
from diastole.models.coordinates import Region
from diastole.models.crossing import send
from diastole.models.methods.bases.nested import Nested
from diastole.models.methods.widths.bands import Bands, Laid, added, bands_of, entries
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.made import TIED, tied
from diastole.models.networks.family import classifier, layout, network
from diastole.models.networks.registry import NETWORKS
from diastole.models.state import State
from diastole.models.watching import Watching


class Triangular(Nested):
    """Nested networks in which a channel reads only channels of its own width and of narrower ones.

    Weights from later channels to earlier ones are zero and stay zero, so that every layer's matrix is triangular in
    blocks. The first channels then compute the same at every width. One forward pass gives the outputs of all nested
    widths, and what a small device teaches its channels reaches every larger model unchanged. The pass takes the
    multiply-accumulates of the plain network of the full width; the classifier's product is only added up in parts.

    Parameters are the bands of a weight that are not zero, called `NAME[0]`, `NAME[1]` and so on (`bands.py`), so no
    device can bring anything else. A state dict has whole weights; `load_state_dict` takes either.

    Networks with LayerNorm mix all channels and cannot have this structure; each of their widths takes a pass of its
    own. The same holds for a custom network whose `forward` mixes channels in another way, or does anything after its
    last linear layer or convolution. `_head_of` finds such networks by a trial, once for each model.
    """

    def __init__(self, model: ModelConfig, width: float, nested: Sequence[float], head: str | None = None) -> None:
        """Make a model of `width`, the largest of `nested`, which ascend. Raises `SpecError`.

        `head` is the path of the layer that gives the outputs, empty for none; it is found if it is not given.
        """
        super().__init__(model, width, nested)
        self.widths = tuple(nested)
        full = self._networks[width]
        self.shapes = {name: parameter.shape for name, parameter in full.named_parameters()}
        self._layout = within(layout(model), self.shapes)
        self._sizes = [
            counts(layout(model), {name: p.shape for name, p in self._networks[w].named_parameters()})
            for w in self.widths
        ]
        if head is None:
            mixes = any(isinstance(layer, nn.LayerNorm) for layer in full.modules())
            head = "" if mixes else classifier(model) if NETWORKS[model.name].layered else _head_of(model)
        self._path, self.exact = head, bool(head)
        self.bands: Mapping[str, Bands] = {}
        self._alike: dict[str, str] = {}
        self._laid: Mapping[str, Laid | None] = {}
        self._inputs_on = dict[torch.device, list[slice | Tensor]]()
        if self.exact:
            self.bands = bands_of(self._layout, self.shapes, self._sizes)
            self._take_head(full)
            self._cut_up(full)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs `[n, ...]` of the full width."""
        if not self.exact:
            return super().at(x, self.width)
        outputs: Tensor = self._head(self._features(x))
        return outputs

    def logits(self, x: Tensor) -> list[Tensor]:
        """Return the outputs `[n, ...]` of every nested width, the full one last."""
        if not self.exact:
            return [self.at(x, width) for width in self.widths]
        head, features, found = self._head, self._features(x), list[Tensor]()
        total: Tensor | None = head.bias
        if total is not None and not isinstance(head, nn.Linear):
            total = total.view(-1, *[1] * len(head.kernel_size))
        for new in self._inputs(x.device):
            # A column that several widths share is multiplied once.
            if isinstance(head, nn.Linear):
                more = F.linear(features[..., new], head.weight[:, new])
            else:
                more = head._conv_forward(features[:, new], head.weight[:, new], None)
            total = more if total is None else total + more
            found.append(total)
        return found

    def at(self, x: Tensor, width: float) -> Tensor:
        """Return outputs `[n, ...]` of one of the nested widths by a pass of its own. Raises `KeyError`."""
        return self(x) if width == self.width else super().at(x, width)

    def zeroed(self, state: State) -> State:
        """Return a copy of the plain network's parameters in which no channel reads a later one."""
        return self._made(state, lambda bands, part: part)

    def rescaled(self, state: State) -> State:
        """Return a `zeroed` copy of fresh parameters, enlarged where a channel then reads fewer others.

        Weights of a channel that reads `1 / k` of all channels are multiplied by the fourth root of `k`. A layer
        initialises its weights by the number of its inputs, so with the square root the narrow networks would start as
        if each were alone. With no factor at all they take steps that are `k` times too large, because after a
        normalisation a step counts by the square of the weights. Half way between the two was best in the mean of the
        trials (docs/methods/diastole.md).
        """
        return self._made(
            state, lambda bands, part: part * (bands.shape[bands.reads] / part.shape[bands.reads]) ** 0.25
        )

    def cut(self, state: Mapping[str, Tensor]) -> State:
        """Return parameters as this module has them: of whole weights in `state`, such as the plain network's, bands.

        What is none of its weights, or not of their shape, stays as it is.
        """
        found = dict(state)
        for name, bands in self._banded().items():
            if name in found and found[name].shape == bands.shape:
                found |= zip(bands.names(name), bands.parts(found.pop(name)), strict=True)
        return found

    def places(self) -> dict[str, tuple[str, Region]]:
        """Return where each parameter lies in the plain network of this width: the name of a tensor, and a region."""
        found = {name: (name, Region.prefix(shape)) for name, shape in self.shapes.items() if name not in self.bands}
        for name, bands in self.bands.items():
            found |= {own: (name, each) for own, each in zip(bands.names(name), bands.regions, strict=True)}
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return that of the plain network of this width, in which bands are whole weights."""
        found, prefix = super().state_dict(*args, **kwargs), kwargs.get("prefix", "")
        for name, bands in self._banded().items():
            found[prefix + name] = bands.whole([found.pop(prefix + own) for own in bands.names(name)])
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the parameters of the plain network of this width, or those of this module."""
        found = super().load_state_dict(self.cut(state_dict), strict, assign)
        self.lay()
        return found

    def lay(self, memory: torch.memory_format = torch.contiguous_format) -> None:
        """Let bands be views of their weights, in this memory format, so that steps need not make these anew."""
        self._laid = {name: bands.lay(self._parts(name), memory) for name, bands in self.bands.items()}

    def __getstate__(self) -> dict[str, Any]:
        # The parameters of a copy are no views of anything.
        return {**vars(self), "_laid": {}}

    @property
    def spare(self) -> int:
        """The bytes that whole weights take beside the parameters that lie in them."""
        return sum(bands.spare * self._parts(name)[0].element_size() for name, bands in self.bands.items())

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters of the plain network of this width, made of this module's."""
        named: dict[str, Tensor] = dict(self.named_parameters())
        for name, bands in self.bands.items():
            named[name] = bands.whole([named.pop(own) for own in bands.names(name)], self._laid.get(name))
        return named | {other: named[name] for other, name in self._alike.items()}

    @property
    def _head(self) -> nn.Linear | _ConvNd:
        return cast(nn.Linear | _ConvNd, self.get_submodule(self._path))

    def _take_head(self, full: nn.Module) -> None:
        """Take the head from the network that lends its forward pass; it stays a part of this module."""
        mine, theirs = cast(nn.Module, self), full
        *outer, name = self._path.split(".")
        for part in outer:
            # The modules around the head are there twice: here with the head, and in the lending network without it.
            theirs, held = theirs.get_submodule(part), copy(theirs.get_submodule(part))
            held._modules = dict(held._modules)
            setattr(mine, part, held)
            mine = held
        setattr(theirs, name, _Passing(theirs.get_submodule(name)))

    def _made(self, state: State, change: Callable[[Bands, Tensor], Tensor]) -> State:
        """Return a copy of the plain network's parameters with only the bands of weights in it, changed."""
        return {
            name: bands.whole([change(bands, part) for part in bands.parts(tensor)])
            if (bands := self.bands.get(name))
            else tensor.clone()
            for name, tensor in state.items()
        }

    def _parts(self, name: str) -> list[nn.Parameter]:
        return [self.get_parameter(own) for own in self.bands[name].names(name)]

    def _banded(self) -> dict[str, Bands]:
        """Return the bands of weights by all names of each."""
        return {**self.bands, **{other: self.bands[name] for other, name in self._alike.items()}}

    def _cut_up(self, full: nn.Module) -> None:
        """Put the bands of weights in their places, in the layers that have the weights."""
        same = tied(full)
        for name, bands in self.bands.items():
            weight = full.get_parameter(name)
            parts = [nn.Parameter(part, weight.requires_grad) for part in bands.parts(weight.detach())]
            others = [other for other, first in same.items() if first == name]
            self._alike |= dict.fromkeys(others, name)
            for path in (name, *others):
                owner, _, own = path.rpartition(".")
                for each in (self, full):
                    each.get_submodule(owner)._parameters.pop(own, None)
                for own_name, part in zip(bands.names(own), parts, strict=True):
                    self.get_submodule(owner).register_parameter(own_name, part)
        if self._alike:
            setattr(self, TIED, tied(self))

    def _features(self, x: Tensor) -> Tensor:
        """Return the head's input, at the full width."""
        full = self._networks[self.width]
        if full.training != self.training:
            full.train(self.training)
        own = {name: tensor for name, tensor in self.tensors().items() if not name.startswith(f"{self._path}.")}
        features: Tensor = functional_call(full, own, (x,))
        return features

    def _inputs(self, device: torch.device) -> list[slice | Tensor]:
        """Return the inputs of the head that each width adds to the width before."""
        if device not in self._inputs_on:
            there = entries(self._layout[f"{self._path}.weight"][1], self._sizes)
            new = [added(before, after) for before, after in pairwise([there[0][:0], *there])]
            self._inputs_on[device] = [
                slice(each.start, each.stop) if isinstance(each, range) else send(torch.tensor(each), device)
                for each in new
            ]
        return self._inputs_on[device]


class _Passing(nn.Module):
    """Stands where a layer was: gives what it is given, and has what else the layer has, for whoever looks at that."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # No part of this module, whose parameters it would have.
        vars(self)["_layer"] = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x

    def __getattr__(self, name: str) -> Any:
        layer = vars(self).get("_layer")
        if layer is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(layer, name)


@cache
def _head_of(model: ModelConfig) -> str:
    """Return the path of the layer that ends a network, empty if one pass cannot serve all widths.

    A trial at half the channels decides. Half leaves no set whole, so the answer is the same for every device. All
    weights are random, also those of the channels that are left out. One pass must then give the same outputs of the
    full and of the half width as the plain network and a pass at half the width. The trial draws from a generator of
    its own, and makes its modules on the CPU even while others are made elsewhere.
    """
    head = classifier(model)
    if not head:
        return ""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad(), _Exact():  # type: ignore[no-untyped-call]
        plain, draws = network(model).eval().float(), torch.Generator().manual_seed(0)
        values = {
            name: torch.randn(parameter.shape, generator=draws) / max(1, parameter.shape[1:].numel()) ** 0.5
            for name, parameter in plain.named_parameters()
        }
        x = model.drawn(4, draws)
        trial = Triangular(model, 1.0, (0.5, 1.0), head).eval()
        for each in (trial, *trial.lent):
            each.float()
        zeroed = trial.zeroed(values)
        trial.load_state_dict(zeroed)
        plain.load_state_dict(zeroed)
        expected, narrow = plain(x), trial.at(x, 0.5)
        try:
            half, full = trial.logits(x)
        except Exception:  # noqa: BLE001 (the user's code may look at what lies where the head was)
            return ""
        same = _close(trial(x), expected) and _close(full, expected) and _close(half, narrow)
    return head if same else ""


class _Exact(Watching):  # type: ignore[no-untyped-call]
    """Computes in float32 where a network's `forward` asks for 16 bits, whose rounding would hide what is compared."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") in (torch.bfloat16, torch.float16):
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


def _close(one: Tensor, other: Tensor) -> bool:
    """Return whether two results differ by no more than another order of their sums explains."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
