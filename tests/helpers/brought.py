"""Networks that a user might bring."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dense(nn.Module):
    """Densely connected: every layer reads what all layers before it gave (as in Huang et al., CVPR 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(4, 8), nn.Conv2d(8, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(6, 12), nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.norm3, self.transition = nn.GroupNorm(10, 20), nn.Conv2d(20, 12, 1)
        self.classifier = nn.Linear(12 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        x = F.avg_pool2d(F.relu(self.transition(F.relu(self.norm3(x)))), 2)
        return self.classifier(x.flatten(1))


class Digits(nn.Module):
    """A small densely connected network for `[1, 8, 8]` and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.classifier = nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.classifier(F.max_pool2d(F.relu(torch.cat([x, self.conv(F.relu(x))], 1)), 2).flatten(1))


class Excite(nn.Module):
    """Squeeze and excitation (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))[:, :, None, None]


class Inverted(nn.Module):
    """Inverted residual with a depthwise convolution (Sandler et al., CVPR 2018)."""

    def __init__(self, inside: int, outside: int, expand: int) -> None:
        super().__init__()
        wide = inside * expand
        self.expand, self.norm1 = nn.Conv2d(inside, wide, 1, bias=False), nn.GroupNorm(wide // 4, wide)
        self.depth, self.norm2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.GroupNorm(wide // 4, wide)
        self.excite = Excite(wide, 8)
        self.project, self.norm3 = nn.Conv2d(wide, outside, 1), nn.GroupNorm(outside // 4, outside)
        self.residual = inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.expand(x)))
        y = self.norm3(self.project(self.excite(F.silu(self.norm2(self.depth(y))))))
        return x + y if self.residual else y


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Inverted(8, 8, 2), Inverted(8, 16, 3), Inverted(16, 16, 2))
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class UNet(nn.Module):
    """Down and up again, with what was before beside it; the last convolution reads the examples too."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.prelu = nn.ConvTranspose2d(16, 4, 2, stride=2), nn.PReLU(12)
        self.up1, self.up0 = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(3 + 8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        above = F.relu(self.down1(x))
        below = F.relu(self.down2(F.max_pool2d(above, 2)))
        above = F.relu(self.up1(self.prelu(torch.cat([self.up(below), above], 1))))
        return self.classifier(F.relu(self.up0(torch.cat([x, above], 1))).mean((2, 3)))


class Inception(nn.Module):
    """Branches side by side with a shortcut round them, a grouped convolution and a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(8, size, k, padding=k // 2) for size, k in ((8, 1), (4, 3), (8, 5)))
        self.shortcut = nn.Conv2d(8, 20, 1)
        self.gate = nn.Conv2d(20, 24, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.norm = nn.InstanceNorm2d(12, affine=True)
        self.classifier = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(torch.cat([branch(x) for branch in self.branches], 1) + self.shortcut(x))
        value, gate = self.gate(y).chunk(2, 1)
        return self.classifier(self.norm(self.grouped(value * torch.sigmoid(gate))).amax((2, 3)))


class Perceptron(nn.Module):
    """Layers on vectors, with LayerNorm, which mixes channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.residual = nn.Linear(192, 16), nn.LayerNorm(16), nn.Linear(16, 16)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(x.flatten(1)))
        return self.classifier(x + self.residual(self.norm(x)))


class BatchNormed(nn.Module):
    """Normalises vectors by the others of their batch, so that it cannot be trained on one example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(192, 16), nn.BatchNorm1d(16, track_running_stats=False)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.norm(self.inner(x.flatten(1)))))


class OnInput(nn.Module):
    """Adds to the examples' own channels, which nobody may narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back, self.classifier = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier((x + self.back(F.relu(self.there(x)))).mean((2, 3)))


class Mixing(nn.Module):
    """A residual block with a depthwise convolution and, channels last, a perceptron (Liu et al., CVPR 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


class Modern(nn.Module):
    """Two stages of residual blocks with a strided convolution and a norm between them (as ConvNeXt has them)."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 8, 2, stride=2)
        self.first = nn.Sequential(*(Mixing(8) for _ in range(3)))
        self.shrink = nn.Sequential(nn.GroupNorm(4, 8), nn.Conv2d(8, 16, 2, stride=2))
        self.second = nn.Sequential(*(Mixing(16) for _ in range(2)))
        self.norm, self.classifier = nn.LayerNorm(16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.second(self.shrink(self.first(self.patches(x)))).mean((2, 3))))


class Joining(nn.Module):
    """Hands on what it is given, and new channels beside it."""

    def __init__(self, inside: int, more: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(inside // 2, inside), nn.Conv2d(inside, more, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Refining(nn.Module):
    """Adds to all that it is given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(channels // 2, channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


class Joined(nn.Module):
    """Densely connected blocks, each with one that refines it; what is between them is written in forward."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.blocks = nn.ModuleDict({"join1": Joining(8, 4), "refine1": Refining(12)})
        self.between = nn.Conv2d(12, 8, 1)
        self.blocks.update({"join2": Joining(8, 8), "refine2": Refining(16)})
        self.classifier = nn.Linear(16 * 16, classes)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = self.stem(x) if scale is None else scale * self.stem(x)
        x = self.blocks["refine1"](self.blocks["join1"](x))
        x = F.relu(self.blocks["join2"](F.max_pool2d(self.between(x), 2)))
        return self.classifier(self.blocks["refine2"](x).flatten(1))


class Perceptrons(nn.Module):
    """Residual perceptrons on the tokens of an image, which have their channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


ModernDigits, JoinedDigits = partial(Modern, 1, 10), partial(Joined, 1, 10)


class Vectors(nn.Module):
    """Residual layers on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(192, 8), nn.Linear(8, 4)
        self.one, self.two = (nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.enter(x.flatten(1)))))


class TwoArguments(nn.Module):
    """Calls a block with more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 1), Pair(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x), False).mean((2, 3)))


class Pair(nn.Module):
    """A block that gives one tensor or two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, two: bool = True) -> Tensor | tuple[Tensor, Tensor]:
        return (self.conv(x), x) if two else self.conv(x)


class Chain(nn.Module):
    """A stem, blocks `a` and `b`, and a classifier, and one thing by which it cannot be taken apart."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.classifier = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.a, self.b = Refining(8), nn.Sequential(Refining(8), nn.Conv2d(8, 8, 1))
        if kind == "pair":
            self.a = Pair()
        if kind == "wider":
            self.b, self.classifier = nn.Conv2d(8, 16, 1), nn.Linear(16, 4)
        if kind == "joined":
            self.more, self.a, self.b = nn.Conv2d(3, 4, 1), Refining(12), nn.Conv2d(12, 12, 1)
            self.classifier = nn.Linear(12, 4)
        if kind == "behind":
            self.b, self.last, self.classifier = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 4)
        if kind == "idle":
            self.c = nn.Conv2d(8, 8, 1)
            self.c.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        start, x = x, self.stem(x)
        if self.kind == "joined":
            x = torch.cat([x, self.more(start)], 1)
        stem, x = x, self.a(x)
        if self.kind == "pair":
            x = x[0]
        elif self.kind == "control" and x.shape[1] > 4:
            x = F.relu(x)
        elif self.kind == "constant":
            x = x * torch.tensor(2.0)
        elif self.kind == "training":
            x = F.dropout(x, 0.5, self.training)
        elif self.kind == "inplace":
            x = x.relu_()
        elif self.kind == "twice":
            x = self.a(x)
        elif self.kind == "beside":
            return self.classifier((x + self.b(stem)).mean((2, 3)))
        x = x + self.b(x) if self.kind == "round" else self.b(x)
        if self.kind == "past":
            x = x * torch.sigmoid(stem)
        elif self.kind == "examples":
            x = x * start.mean()
        elif self.kind == "behind":
            x = x + self.last(x)
        return self.classifier(x.mean((2, 3)))


class Odd(nn.Module):
    """Two layers and a classifier, and one thing that few networks have."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.last, self.classifier = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        if kind == "transposed":
            self.last = nn.ConvTranspose2d(8, 16, 2, 2)
            self.behind = nn.Conv2d(16, 8, 1)
        if kind == "chunk":
            self.last = nn.Conv2d(8, 16, 1)
            self.behind = nn.Conv2d(8, 8, 1)
        if kind == "hidden":
            self.classifier, self.out = nn.Linear(8, 16), nn.Linear(16, 4)
        if kind in ("fc", "inside"):
            del self.classifier
            self.fc = nn.Linear(8, 4, bias=False) if kind == "fc" else nn.Sequential(nn.ReLU(), nn.Linear(8, 4))
        self.maps = nn.Dropout2d(0.3) if kind == "dropout" else nn.Identity()
        self.drop = nn.Dropout(0.1) if kind == "dropout" else nn.AlphaDropout() if kind == "alpha" else nn.Identity()
        if kind == "everything":
            self.drop = nn.Sequential(nn.Dropout(0.999))
        if kind == "bottleneck":
            self.last, self.behind = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if self.kind == "normalised":
            x = F.normalize(x, dim=1)
        elif self.kind == "gate":
            x = x * torch.sigmoid(x.amax(1, keepdim=True))
        x = self.maps(self.last(x))
        if self.kind == "chunk":
            value, gate = x.chunk(2, 1)
            x = value * torch.sigmoid(gate)
        x = F.relu(self.behind(F.relu(x)) if hasattr(self, "behind") else x).mean((2, 3))
        if self.kind == "hidden":
            return self.out(F.relu(self.classifier(x)))
        x = self.drop(F.dropout(x, 0.5, self.training) if self.kind == "functional" else x)
        x = self.fc(x) if hasattr(self, "fc") else self.classifier(x)
        return F.log_softmax(x, 1) if self.kind == "log softmax" else x.relu_() if self.kind == "in place" else x


class Faulty(nn.Module):
    """A stem and a classifier, and in between what cannot be sliced."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.last, self.classifier = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        if kind == "buffer":
            self.register_buffer("mean", torch.zeros(8, 1, 1))
        if kind == "parameter":
            self.scale = nn.Parameter(torch.ones(8, 1, 1))
        if kind == "lstm":
            self.norm = nn.LSTM(8, 8, batch_first=True)
        if kind == "attention":
            self.norm = nn.MultiheadAttention(8, 2, batch_first=True)
        if kind == "groups":
            self.last = nn.Conv2d(8, 16, 1, groups=4)
            self.classifier = nn.Linear(16, 4)
        if kind == "wide groups":
            self.norm = nn.GroupNorm(1, 8)
        if kind == "odd norm":
            self.norm = nn.GroupNorm(2, 16)
            self.last = nn.Conv2d(16, 8, 1)
        if kind == "joined norm":
            self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 12)
            self.other, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(12, 8, 1)
        if kind == "plain norm":
            self.norm = nn.GroupNorm(2, 8, affine=False)
        if kind == "counting":
            self.register_buffer("seen", torch.zeros(()))
        if kind == "tied":
            self.norm = nn.Conv2d(8, 8, 1)
            self.norm.weight = self.last.weight
        if kind == "idle":
            self.norm = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        start, x = x, self.stem(x)
        n, c, h, w = x.shape
        if self.kind in ("wide groups", "plain norm", "tied"):
            x = self.norm(x)
        elif self.kind == "buffer":
            x = x - self.mean
        elif self.kind == "parameter":
            x = x * self.scale
        elif self.kind == "odd norm":
            x = self.norm(torch.cat([x, x], 1))
        elif self.kind == "joined norm":
            x = self.norm(torch.cat([x, self.other(start)], 1))
        elif self.kind == "shuffle":
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        elif self.kind == "softmax":
            x = x.softmax(1)
        elif self.kind == "counting":
            self.seen = self.seen + len(x)
        elif self.kind == "sorted":
            x = self.last(torch.fft.fft(x, dim=1).real) * x
        elif self.kind == "number":
            x = x.reshape(n, 8, h, w)
        elif self.kind == "weight":
            return self.classifier(F.conv2d(x, self.last.weight.abs()).mean((2, 3)))
        elif self.kind == "crash":
            raise RuntimeError("on the\nrocks")
        elif self.kind == "two":
            return self.classifier(x.mean((2, 3)))[:, :2]
        return self.classifier(self.last(x).mean((2, 3)))


def __getattr__(name: str) -> object:
    """Return a maker of the faulty network whose kind is the name, with spaces for underlines."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name.startswith("rare_"):
        return lambda: Odd(name.removeprefix("rare_").replace("_", " "))
    if name.startswith("chain_"):
        return lambda: Chain(name.removeprefix("chain_"))
    return lambda: Faulty(name.replace("_", " "))


def no_module() -> str:
    return "a network"
