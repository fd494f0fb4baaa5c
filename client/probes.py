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
            "steps": 1,
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
            "steps": 1,
            "convolutions": 4,
            "dense": 1769472,
            "matrix": 30720,
            "pooling": 221184,
            "ragged": 3538944,
        },
    ),
    Probe(
        ModelConfig("cnn", (3, 32, 32), 10, (16, 32)),
        32,
        4485120,
        {
            "memory": 55892080,
            "calls": 25,
            "steps": 1,
            "convolutions": 4,
            "dense": 141557760,
            "matrix": 1966080,
            "pooling": 14155776,
        },
    ),
    Probe(
        ModelConfig("cnn", (9, 128), 6, (16, 32)),
        32,
        423936,
        {
            "memory": 10797056,
            "calls": 25,
            "steps": 1,
            "convolutions": 4,
            "matrix": 589824,
            "pooling": 3145728,
            "sequence": 15728640,
        },
    ),
    Probe(
        ModelConfig("resnet", (3, 16, 16), 10, (16, 32), (1, 1)),
        16,
        6513600,
        {
            "memory": 20947952,
            "calls": 41,
            "steps": 1,
            "convolutions": 12,
            "dense": 102629376,
            "matrix": 15360,
            "pointwise": 1572864,
        },
    ),
    Probe(
        ModelConfig("resnet", (3, 8, 8), 10, (24, 48), (1, 1)),
        8,
        3623328,
        {
            "memory": 5227344,
            "calls": 41,
            "steps": 1,
            "convolutions": 12,
            "dense": 28532736,
            "matrix": 11520,
            "pointwise": 442368,
            "ragged": 14082048,
        },
    ),
    Probe(
        ModelConfig("resnet", (3, 32, 32), 10, (4, 8, 16), (1, 1, 1)),
        16,
        2482656,
        {
            "memory": 24170080,
            "calls": 53,
            "steps": 1,
            "convolutions": 18,
            "dense": 88473600,
            "matrix": 7680,
            "pointwise": 1179648,
            "ragged": 225705984,
        },
    ),
    Probe(
        ModelConfig("mobilenet", (3, 32, 32), 10, (8, 8), (1, 1), kernel=3),
        16,
        5938800,
        {
            "memory": 182533728,
            "calls": 52,
            "steps": 1,
            "convolutions": 18,
            "dense": 7077888,
            "depthwise3": 26542080,
            "matrix": 3840,
            "pointwise": 61415424,
            "ragged": 68419584,
        },
    ),
    Probe(
        ModelConfig("mobilenet", (3, 8, 8), 10, (8, 16), (1, 1), kernel=5),
        32,
        577632,
        {
            "memory": 23310656,
            "calls": 52,
            "steps": 1,
            "convolutions": 18,
            "dense": 884736,
            "depthwise5": 9216000,
            "matrix": 15360,
            "pointwise": 8404992,
            "ragged": 7962624,
        },
    ),
    Probe(
        ModelConfig("mobilenet", (3, 16, 16), 10, (8, 16), (1, 1), kernel=7),
        8,
        3404640,
        {
            "memory": 23268800,
            "calls": 52,
            "steps": 1,
            "convolutions": 18,
            "dense": 884736,
            "depthwise7": 18063360,
            "matrix": 3840,
            "pointwise": 8294400,
            "ragged": 7962624,
        },
    ),
    Probe(
        ModelConfig("convnext", (3, 16, 16), 10, (16, 32), (1, 2), group=8, expand=4.0),
        16,
        6538176,
        {
            "memory": 36857200,
            "calls": 37,
            "steps": 1,
            "convolutions": 22,
            "dense": 9830400,
            "depthwise7": 19267584,
            "exponential": 10485760,
            "matrix": 15360,
            "pointwise": 75497472,
        },
    ),
    Probe(
        ModelConfig("transformer", (9, 64), 6, (64,), (1,), group=16),
        16,
        11084928,
        {"memory": 67084472, "calls": 90, "steps": 1, "exponential": 10485760, "matrix": 177358848},
    ),
    Probe(
        ModelConfig("transformer", (9, 64), 6, (16,), (2,), group=16),
        32,
        1984800,
        {"memory": 52985792, "calls": 126, "steps": 1, "exponential": 10485760, "matrix": 63513600},
    ),
)
"""Small networks that have every kind of work, in different mixtures."""
