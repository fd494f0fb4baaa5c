"""Nested networks in which a smaller one is an exact part of a larger one: no channel reads a later width's."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from diastole.models.channels import Axis, Joined, Layout, counts, reads, spans, within
from diastole.models.crossing import send
from diastole.models.methods.bases.nested import Nested
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import classifier, layout, network
from diastole.models.networks.registry import NETWORKS
from diastole.models.state import State


@dataclass(frozen=True, slots=True)
class Zeros:
    """A block of a weight that is zero.

    Attributes:
        reads: the axis of the inputs, 0 or 1; the other one is that of the outputs.
        start: the first output.
        length: number of consecutive outputs.
        entries: the inputs that these outputs must not read, int64.

    """

    reads: int
    start: int
    length: int
    entries: Tensor


Bounds = tuple[Zeros, ...]


class Triangular(Nested):
    """Nested networks in which a channel reads only channels of its own width and of narrower ones.

    Weights from later channels to earlier ones are zero and stay zero, so that every layer's matrix is triangular in
    blocks. The first channels then compute the same at every width. One forward pass gives the outputs of all nested
    widths, and what a small device teaches its channels reaches every larger model unchanged. The pass costs as much as
    that of the plain network of the full width; the classifier's product is only added up in parts.

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
        shapes = {name: parameter.shape for name, parameter in full.named_parameters()}
        self._layout = within(layout(model), shapes)
        self._sizes = [
            counts(layout(model), {name: p.shape for name, p in self._networks[w].named_parameters()})
            for w in self.widths
        ]
        if head is None:
            mixes = any(isinstance(layer, nn.LayerNorm) for layer in full.modules())
            head = "" if mixes else classifier(model) if NETWORKS[model.name].layered else _head_of(model)
        self._path, self.exact = head, bool(head)
        if self.exact:
            self._take_head(full)
        self._bounds: dict[str, Bounds] | None = None
        self._on = dict[torch.device, tuple[Mapping[str, Bounds], list[slice | Tensor]]]()

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
        for entries in self._inputs_on(x.device):
            # A column that several widths share is multiplied once.
            if isinstance(head, nn.Linear):
                more = F.linear(features[..., entries], head.weight[:, entries])
            else:
                more = head._conv_forward(features[:, entries], head.weight[:, entries], None)
            total = more if total is None else total + more
            found.append(total)
        return found

    def at(self, x: Tensor, width: float) -> Tensor:
        """Return outputs `[n, ...]` of one of the nested widths by a pass of its own. Raises `KeyError`."""
        return self(x) if width == self.width else super().at(x, width)

    def zeroed(self, state: State) -> State:
        """Return a copy of the parameters in which no channel reads a later one."""
        found = {name: tensor.clone() for name, tensor in state.items()}
        for name, bounds in self.bounds().items():
            _clear(found[name], bounds)
        return found

    def rescaled(self, state: State) -> State:
        """Return a `zeroed` copy of fresh parameters, enlarged where a channel then reads fewer others.

        Weights of a channel that reads `1 / k` of all channels are multiplied by the fourth root of `k`. A layer
        initialises its weights by the number of its inputs, so with the square root the narrow networks would start as
        if each were alone. With no factor at all they take steps that are `k` times too large, because after a
        normalisation a step counts by the square of the weights. Half way between the two was best in the mean of the
        trials (docs/methods/diastole.md).
        """
        found = self.zeroed(state)
        for name, bounds in self.bounds().items():
            for block in bounds:
                inputs = found[name].shape[block.reads]
                written = found[name].narrow(1 - block.reads, block.start, block.length)
                written *= (inputs / (inputs - len(block.entries))) ** 0.25
        return found

    def bounds(self) -> Mapping[str, Bounds]:
        """Return, for each weight that has any, the blocks that are zero."""
        if self._bounds is None:
            self._bounds = _bounds(self._layout, self._sizes) if self.exact else {}
        return self._bounds

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
        setattr(theirs, name, nn.Identity())

    def _features(self, x: Tensor) -> Tensor:
        """Return the head's input, at the full width."""
        full, bounds = self._networks[self.width], self._bounds_on(x.device)
        if full.training != self.training:
            full.train(self.training)
        own = {
            name: _Lower.apply(p, bounds[name]) if name in bounds else p  # type: ignore[no-untyped-call]
            for name, p in self.named_parameters()
            if not name.startswith(f"{self._path}.")
        }
        features: Tensor = functional_call(full, own, (x,))
        return features

    def _bounds_on(self, device: torch.device) -> Mapping[str, Bounds]:
        """Return `bounds` with indices on a device."""
        if device not in self._on:
            there = {
                name: tuple(replace(block, entries=send(block.entries, device)) for block in blocks)
                for name, blocks in self.bounds().items()
            }
            inputs = [send(each, device) if isinstance(each, Tensor) else each for each in self._inputs()]
            self._on[device] = there, inputs
        return self._on[device][0]

    def _inputs_on(self, device: torch.device) -> list[slice | Tensor]:
        """Return `_inputs` on a device."""
        self._bounds_on(device)
        return self._on[device][1]

    def _inputs(self) -> list[slice | Tensor]:
        """Return the inputs of the head that each width adds to the width before."""
        axis = self._layout[f"{self._path}.weight"][1]
        ends = _ends(axis, self._sizes)
        if isinstance(axis, Axis):
            return [slice(0 if k == 0 else len(ends[k - 1]), len(end)) for k, end in enumerate(ends)]
        seen = [set[int](), *(set(end.tolist()) for end in ends)]
        return [torch.tensor(sorted(after - before)) for before, after in pairwise(seen)]


class _Lower(torch.autograd.Function):
    """The identity, with a gradient of zero in the blocks that a weight must not have."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, bounds: Bounds) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Bounds], output: Tensor) -> None:
        ctx.bounds = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone()
        _clear(gradient, ctx.bounds)
        return gradient, None


def _clear(weight: Tensor, bounds: Bounds) -> None:
    for block in bounds:
        written = weight.narrow(1 - block.reads, block.start, block.length)
        written.index_fill_(block.reads, send(block.entries, weight.device), 0.0)


def _bounds(axes: Layout, sizes: Sequence[Mapping[str, int]]) -> dict[str, Bounds]:
    """Return the zero blocks of each weight that reads channels and writes channels.

    Args:
        axes: what the axes of the full width's parameters run over.
        sizes: channels of each set at every width, the full one last.

    """
    found: dict[str, Bounds] = {}
    for name, along in axes.items():
        read_at = reads(along)
        if read_at is None or along[1 - read_at] is None:
            continue
        rows, columns = _ends(along[1 - read_at], sizes), _ends(along[read_at], sizes)
        blocks, there = list[Zeros](), torch.empty(0, dtype=torch.int64)
        for written, read in zip(rows[:-1], columns[:-1], strict=True):
            entries = _without(columns[-1], read)
            new = _without(written, there) if len(entries) else there[:0]
            blocks += [Zeros(read_at, start, length, entries) for start, length in _runs(new.tolist())]
            there = written
        if blocks:
            found[name] = tuple(blocks)
    return found


def _without(entries: Tensor, others: Tensor) -> Tensor:
    return entries[~torch.isin(entries, others)]


def _runs(entries: Sequence[int]) -> list[tuple[int, int]]:
    """Return where each run of consecutive numbers starts, and its length."""
    starts = [k for k, entry in enumerate(entries) if k == 0 or entry != entries[k - 1] + 1]
    return [(entries[start], stop - start) for start, stop in pairwise([*starts, len(entries)])]


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
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        plain, draws = network(model).eval(), torch.Generator().manual_seed(0)
        values = {
            name: torch.randn(parameter.shape, generator=draws) / max(1, parameter.shape[1:].numel()) ** 0.5
            for name, parameter in plain.named_parameters()
        }
        x = model.drawn(4, draws)
        trial = Triangular(model, 1.0, (0.5, 1.0), head).eval()
        trial.load_state_dict(trial.zeroed(values))
        plain.load_state_dict(trial.zeroed(values))
        half, full = trial.logits(x)
        same = _close(trial(x), plain(x)) and _close(full, plain(x)) and _close(half, trial.at(x, 0.5))
    return head if same else ""


def _close(one: Tensor, other: Tensor) -> bool:
    """Return whether two results differ by no more than another order of their sums explains."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def _ends(axis: Axis | Joined | None, sizes: Sequence[Mapping[str, int]]) -> list[Tensor]:
    """Return the entries of an axis of the full width that are there at each width, int64, ascending."""
    parts = spans(axis, -1)
    found = []
    for size in sizes:
        start, entries = 0, list[Tensor]()
        for part, length in parts:
            full = sizes[-1][part.channels] * part.repeat if part else length
            there = size[part.channels] * part.repeat if part else length
            entries.append(torch.arange(start, start + there))
            start += full
        found.append(torch.cat(entries))
    return found
