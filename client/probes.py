"""The networks by which a device measures its speeds, and the work that a step of each is."""

from dataclasses import dataclass, field

from diastole.models.networks.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Probe:
    """A network to be timed.

    Attributes:
        model: the network.
        batch: examples of a step.
        macs: multiply-accumulates of training on one example. They and the work are written down, because counting them
            takes longer than the steps; a test counts them.
        work: of a step, by kind.

    """

    model: ModelConfig
    batch: int
    macs: int
    work: dict[str, float] = field(hash=False)


PROBES = (
    Probe(
        ModelConfig("cnn", (3, 32, 32), 10, (32, 64)),
        16,
        16048128,
        {
            "memory": 56605360,
            "calls": 25,
            "convolutions": 4,
            "dense": 254803968,
            "matrix": 1966080,
            "pooling": 14155776,
        },
    ),
    Probe(
        ModelConfig("cnn", (3, 16, 16), 10, (4, 8)),
        8,
        114432,
        {
            "memory": 956032,
            "calls": 25,
            "convolutions": 4,
            "dense": 1769472,
            "matrix": 30720,
            "pooling": 221184,
            "ragged": 3538944,
        },
    ),
    Probe(
        ModelConfig("cnn", (6, 64), 6, (12, 24)),
        16,
        117504,
        {
            "memory": 2083888,
            "calls": 25,
            "convolutions": 4,
            "dense": 2555904,
            "matrix": 110592,
            "pooling": 589824,
            "ragged": 1376256,
        },
    ),
    Probe(
        ModelConfig("resnet", (3, 16, 16), 10, (16, 32), (1, 1)),
        16,
        6513600,
        {"memory": 20947952, "calls": 41, "convolutions": 12, "dense": 104202240, "matrix": 15360},
    ),
    Probe(
        ModelConfig("resnet", (3, 8, 8), 10, (24, 48), (1, 1)),
        8,
        3623328,
        {"memory": 5227344, "calls": 41, "convolutions": 12, "dense": 28975104, "matrix": 11520, "ragged": 14082048},
    ),
    Probe(
        ModelConfig("mobilenet", (3, 16, 16), 10, (16, 24), (1, 1), kernel=3),
        16,
        5046480,
        {
            "memory": 92009072,
            "calls": 52,
            "convolutions": 18,
            "dense": 67461120,
            "depthwise3": 13271040,
            "matrix": 11520,
            "ragged": 2433024,
        },
    ),
    Probe(
        ModelConfig("mobilenet", (3, 16, 16), 10, (8, 16), (1, 1), kernel=5),
        16,
        2298720,
        {
            "memory": 46187584,
            "calls": 52,
            "convolutions": 18,
            "dense": 18358272,
            "depthwise5": 18432000,
            "matrix": 7680,
            "ragged": 15925248,
        },
    ),
    Probe(
        ModelConfig("mobilenet", (3, 16, 16), 10, (8, 16), (1, 1), kernel=7),
        8,
        3404640,
        {
            "memory": 23268800,
            "calls": 52,
            "convolutions": 18,
            "dense": 9179136,
            "depthwise7": 18063360,
            "matrix": 3840,
            "ragged": 7962624,
        },
    ),
    Probe(
        ModelConfig("transformer", (9, 64), 6, (64,), (2,), group=16),
        16,
        22094976,
        {"memory": 128733624, "calls": 154, "matrix": 353519616},
    ),
    Probe(
        ModelConfig("transformer", (9, 16), 6, (16,), (1,), group=8),
        2,
        176928,
        {"memory": 549728, "calls": 90, "matrix": 353856},
    ),
)
"""Small networks that have every kind of work, in different mixtures."""
