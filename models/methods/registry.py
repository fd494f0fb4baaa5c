"""The methods by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from diastole.models.compressor import Compressor
from diastole.models.errors import SpecError
from diastole.models.methods.depths import depthfl, inclusivefl, nefl, scalefl
from diastole.models.methods.fedconv import conv
from diastole.models.methods.importance import fiarse
from diastole.models.methods.stitching import snnet, snnetv2
from diastole.models.methods.supernets import architectures, deps, ofa, superfednas, supernet
from diastole.models.methods.widths import adaptivefl, diastole, fedrolex, fjord, heterofl, splitmix, width
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.spec import SubModelSpec, one_line
from diastole.models.training import TrainConfig


@dataclass(frozen=True, slots=True)
class Method:
    """One way of making sub-models.

    Attributes:
        make: returns a compressor for a global model, the widths of the tiers, how devices train, and the options.
        build: returns the freshly initialised module of a sub-model; devices need no more of a method.
        source: the paper.
        idea: what a sub-model is, in a few words.
        options: the class of the method's options, a frozen dataclass that pydantic validates; None for none.
        proxy: whether the method cannot do without a proxy set.
        unlabelled: whether a proxy set without labels will do, for its own work and for the server's training.
        server: settings of the server's optimiser, unless the experiment has its own; FedAvg by default.

    """

    make: Callable[[ModelConfig, Sequence[float], TrainConfig, Any], Compressor]
    build: Callable[[ModelConfig, SubModelSpec], nn.Module]
    source: str
    idea: str
    options: type | None = None
    proxy: bool = False
    unlabelled: bool = False
    server: Mapping[str, Any] = field(default_factory=dict)


METHODS: Mapping[str, Method] = {
    "diastole": Method(
        diastole.DiastoleCompressor,
        diastole.build,
        "this project",
        "the first channels of every layer, which never read later ones",
        diastole.DiastoleConfig,
        unlabelled=True,
        server={"name": "fedavgm", "beta1": 0.5},
    ),
    "width": Method(
        width.WidthCompressor,
        width.build,
        "HeteroFL (Diao et al., ICLR 2021)",
        "the first channels of every layer",
        width.WidthConfig,
    ),
    "conv": Method(
        conv.ConvCompressor,
        width.build,
        "FedConv (Shen et al., MobiSys 2024)",
        "learned convolutions of all weights",
        conv.ConvConfig,
        proxy=True,
    ),
    "fjord": Method(
        fjord.FjordCompressor,
        fjord.build,
        "FjORD (Horvath et al., NeurIPS 2021)",
        "the first channels of every layer, trained at every narrower width too",
        fjord.FjordConfig,
    ),
    "fedrolex": Method(
        fedrolex.FedRolexCompressor,
        width.build,
        "FedRolex (Alam et al., NeurIPS 2022)",
        "consecutive channels of every layer, which move on each round",
        heterofl.HeteroConfig,
    ),
    "splitmix": Method(
        splitmix.SplitMixCompressor,
        splitmix.build,
        "Split-Mix (Hong et al., ICLR 2022)",
        "some of many narrow networks, side by side",
        splitmix.SplitMixConfig,
    ),
    "snnet": Method(
        snnet.SNNetCompressor,
        snnet.build,
        "SN-Net (Pan et al., CVPR 2023)",
        "a route through networks of several widths, stitched together",
        snnet.SNNetConfig,
    ),
    "snnetv2": Method(
        snnetv2.SNNetV2Compressor,
        snnetv2.build,
        "SN-Netv2 (Pan et al., 2023)",
        "a two-way route through two networks, stitched by low-rank layers",
        snnetv2.SNNetV2Config,
    ),
    "fiarse": Method(
        lambda model, widths, training, options: fiarse.FiarseCompressor(model, widths, training),
        fiarse.build,
        "FIARSE (Wu et al., NeurIPS 2024)",
        "the scalars of largest magnitude",
    ),
    "depthfl": Method(
        depthfl.DepthFLCompressor,
        depthfl.build,
        "DepthFL (Kim et al., ICLR 2023)",
        "the first stages, each with an exit",
        depthfl.DepthFLConfig,
    ),
    "inclusivefl": Method(
        inclusivefl.InclusiveFLCompressor,
        inclusivefl.build,
        "InclusiveFL (Liu et al., KDD 2022)",
        "the first layers; each size's last one is its own",
        inclusivefl.InclusiveFLConfig,
    ),
    "scalefl": Method(
        scalefl.ScaleFLCompressor,
        scalefl.build,
        "ScaleFL (Ilhan et al., CVPR 2023)",
        "the first channels of the first stages, each with an exit",
        scalefl.ScaleFLConfig,
    ),
    "nefl": Method(
        nefl.NeFLCompressor,
        nefl.build,
        "NeFL (Kang et al., TMC 2025)",
        "the first channels of some residual blocks; each size's norms are its own",
        nefl.NeFLConfig,
    ),
    "adaptivefl": Method(
        adaptivefl.AdaptiveFLCompressor,
        adaptivefl.build,
        "AdaptiveFL (Jia et al., DAC 2024)",
        "all channels of the first stages, the first channels of the others",
        adaptivefl.AdaptiveFLConfig,
    ),
    "ofa": Method(
        ofa.OfaCompressor,
        architectures.build,
        "Once-for-All (Cai et al., ICLR 2020)",
        "architectures of a supernet, with kernels of several sizes",
        supernet.SupernetConfig,
    ),
    "superfednas": Method(
        superfednas.SuperFedNasCompressor,
        architectures.build,
        "SuperFedNAS (Khare et al., ECCV 2024)",
        "architectures of a supernet; the largest one's update weighs most at first",
        superfednas.SuperFedNasConfig,
    ),
    "deps": Method(
        deps.DepsCompressor,
        architectures.build,
        "DepS (Annavajjala et al., ECCV 2024)",
        "architectures of a supernet that join in late and slowly",
        deps.DepsConfig,
    ),
}


def make_compressor(
    method: str,
    model: ModelConfig,
    widths: Sequence[float],
    training: TrainConfig,
    options: Mapping[str, Any] | None = None,
) -> Compressor:
    """Return a new compressor of `model` for tiers of the given widths.

    A tier of width w can afford what plain training of the model at that width costs; a method that does not slice
    widths offers sizes of about these costs.

    Raises `SpecError` for an unknown method, wrong options, or a width that the model cannot have.
    """
    return _method(method).make(model, widths, training, parse_options(method, options or {}))


def parse_options(method: str, options: Mapping[str, Any]) -> Any:
    """Return a method's options, checked; None for a method without any. Raises `SpecError`."""
    kind = _method(method).options
    if kind is None:
        if options:
            raise SpecError(f"method {method} has no options, not {', '.join(options)}")
        return None
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    try:
        return adapter.validate_python(dict(options))
    except ValidationError as error:
        raise SpecError(f"options of method {method}: {one_line(error, adapter.json_schema())}") from None


def build(model: ModelConfig, spec: SubModelSpec | None = None) -> nn.Module:
    """Return a freshly initialised module: the plain global model, or the sub-model that `spec` names.

    Raises `ModelError` if the configuration cannot be built, `SpecError` if the sub-model cannot.
    """
    return network(model) if spec is None else _method(spec.method).build(model, spec)


def _method(name: str) -> Method:
    if name not in METHODS:
        raise SpecError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
