"""The models that benchmarks are quoted for."""

from diastole.models.networks.config import ModelConfig

RESNET18 = ModelConfig("resnet", (3, 32, 32), 10, (64, 128, 256, 512), (2, 2, 2, 2))
"""ResNet-18 for CIFAR: 11.2 million parameters, 44.7 MB."""

WIDE_CNN = ModelConfig("cnn", (3, 32, 32), 10, (1328, 1328))
"""A model for its size alone: 64 MiB in few tensors."""

LARGE_CNN = ModelConfig("cnn", (3, 32, 32), 10, (2352, 2352))
"""200 MB in few tensors."""

MEDIUM_CNN = ModelConfig("cnn", (1, 4, 4), 10, (512, 512))
"""9.5 MB, on inputs so small that most of a step is reading and writing weights."""

TINY_CNN = ModelConfig("cnn", (1, 8, 8), 10, (4, 8))
"""A model that trains in about a millisecond."""
