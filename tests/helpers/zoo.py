"""Twelve small networks as people write them, none with diastole in mind; `CONFIGS` has the configuration of each."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.networks.config import ModelConfig


class BasicBlock(nn.Module):
    """A residual block with BatchNorm (He et al., CVPR 2016)."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.layer1, self.layer2 = (
            nn.Sequential(BasicBlock(8, 8)),
            nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16)),
        )
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class TextLSTM(nn.Module):
    """Classifies a text by the last state of a recurrent network of two layers, with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True, dropout=0.1, bidirectional=True)
        self.fc = nn.Linear(2 * 16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embedding(tokens))
        return self.fc(torch.cat([hidden[-2], hidden[-1]], dim=1))


class SensorGRU(nn.Module):
    """Predicts two values from a window of sensors; its first state is made on the spot."""

    def __init__(self, hidden_size: int = 16) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gru, self.head = nn.GRU(3, hidden_size, batch_first=True), nn.Linear(hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(1, x.size(0), self.hidden_size, device=x.device)
        outputs, _ = self.gru(x.transpose(1, 2), start)
        return self.head(outputs[:, -1])


class Transformer(nn.Module):
    """An encoder of torch's own layers, with a mask and a table of sines as buffers."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.token = nn.Embedding(20, dim)
        angles = torch.arange(8.0)[:, None] / 50 ** (torch.arange(0, dim, 2) / dim)
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], 2).flatten(1))
        layer = nn.TransformerEncoderLayer(dim, nhead=2, dim_feedforward=32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.classifier = nn.LayerNorm(dim), nn.Linear(dim, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(self.token(tokens) + self.positions)
        return self.classifier(self.norm(x.mean(dim=1)))


class Attention(nn.Module):
    """Attention as vision transformers have it: one layer for queries, keys and values, and heads made by a view."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, length, dim))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 32), nn.GELU(), nn.Linear(32, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer with a class token and a table of positions (Dosovitskiy et al., ICLR 2021)."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, 2) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, and channels last a perceptron with a scale for each channel (Liu et al., CVPR 2022)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        self.gamma = nn.Parameter(0.1 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage1 = nn.Conv2d(3, 8, 2, 2), ConvNeXtBlock(8)
        self.down, self.stage2 = nn.Conv2d(8, 16, 2, 2), ConvNeXtBlock(16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class DoubleConv(nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Labels every pixel (Ronneberger et al., MICCAI 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.pool, self.down = DoubleConv(3, 8), nn.MaxPool2d(2), DoubleConv(8, 16)
        self.up, self.conv = nn.ConvTranspose2d(16, 8, kernel_size=2, stride=2), DoubleConv(16, 8)
        self.outc = nn.Conv2d(8, 3, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.inc(x)
        return self.outc(self.conv(torch.cat([first, self.up(self.down(self.pool(first)))], dim=1)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(self.pool(x)))))


class MobileNet(nn.Module):
    """Inverted residuals with squeeze and excitation (Howard et al., ICCV 2019), and functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depth = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.excite, self.project = SqueezeExcite(16), nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.excite(self.depth(self.expand(x))))
        return self.classifier(F.dropout(x.mean((2, 3)), 0.1, self.training))


class TemporalBlock(nn.Module):
    """Dilated causal convolutions with weight norm, around a shortcut (Bai et al., 2018)."""

    def __init__(self, inside: int, outside: int, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        norm = nn.utils.parametrizations.weight_norm
        self.conv1 = norm(nn.Conv1d(inside, outside, 3, padding=self.padding, dilation=dilation))
        self.conv2 = norm(nn.Conv1d(outside, outside, 3, padding=self.padding, dilation=dilation))
        self.downsample = nn.Conv1d(inside, outside, 1) if inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[:, :, : -self.padding])
        y = F.relu(self.conv2(y)[:, :, : -self.padding])
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(TemporalBlock(3, 8, 1), TemporalBlock(8, 16, 2))
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x)[:, :, -1])


class Hybrid(nn.Module):
    """A convolutional stem, grouped convolutions, and attention over the positions of the map."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, dim, 3, 2, 1), nn.GroupNorm(4, dim)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=4)
        self.norm, self.attention = nn.LayerNorm(dim), nn.MultiheadAttention(dim, 2, batch_first=True)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm0(self.stem(x)))
        x = x + self.local(x)
        x = x.flatten(2).transpose(1, 2)
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


class Conv3D(nn.Module):
    """Convolutions over depth, height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True)
        self.conv2, self.prelu = nn.Conv3d(8, 16, 3, padding=1), nn.PReLU(16)
        self.fc = nn.Linear(16 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm1(self.conv1(x))), 2)
        return self.fc(F.max_pool3d(self.prelu(self.conv2(x)), 2).flatten(1))


class LanguageModel(nn.Module):
    """Predicts the next token; the table of tokens reads the outputs too (Press and Wolf, EACL 2017)."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(20, dim), nn.Embedding(8, dim)
        self.register_buffer("mask", torch.full((8, 8), float("-inf")).triu(1))
        self.block = nn.TransformerEncoderLayer(dim, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.norm, self.output = nn.LayerNorm(dim), nn.Linear(dim, 20, bias=False)
        self.output.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens) + self.position(places)
        return self.output(self.norm(self.block(x, src_mask=self.mask, is_causal=True)))


def config(name: str, shape: tuple[int, ...], classes: int = 4, group: int = 4, **more: object) -> ModelConfig:
    """Return the configuration of one of these networks."""
    return ModelConfig("custom", shape, classes=classes, group=group, factory=f"zoo:{name}", **more)


WORDS = {"vocabulary": 20}
CONFIGS = {
    "resnet": config("ResNet", (3, 8, 8)),
    "lstm": config("TextLSTM", (8,), **WORDS),
    "gru": config("SensorGRU", (3, 8), classes=2),
    "transformer": config("Transformer", (8,), group=8, **WORDS),
    "vit": config("ViT", (3, 8, 8), group=8),
    "convnext": config("ConvNeXt", (3, 8, 8)),
    "unet": config("UNet", (3, 8, 8), classes=3, outputs=(3, 8, 8)),
    "mobilenet": config("MobileNet", (3, 8, 8)),
    "tcn": config("TCN", (3, 8)),
    "hybrid": config("Hybrid", (3, 8, 8), group=8),
    "conv3d": config("Conv3D", (1, 8, 8, 8)),
    "language": config("LanguageModel", (8,), classes=20, group=8, outputs=(8, 20), **WORDS),
}
LOSSES = {"gru": "mse", "language": "next-token"}
"""The loss of those that are not trained by cross-entropy."""
