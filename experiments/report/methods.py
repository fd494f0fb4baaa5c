"""What each method's sizes cost the devices of each tier."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from diastole.models.compressor import Offer
from diastole.models.methods.registry import METHODS
from diastole.proto.errors import DiastoleError
from diastole.experiments.experiment import Experiment
from diastole.simulations.devices import make_federation
from diastole.experiments.report.report import fitting


@dataclass(frozen=True, slots=True)
class Size:
    """The largest exported size that fits a tier's devices.

    Attributes:
        label: the sub-model's.
        parameters: scalars.
        training_macs: multiply-accumulates of training on one example.
        bytes: to download, and likewise to upload, a round; the larger of the two.
        memory: peak bytes of training.

    """

    label: str
    parameters: int
    training_macs: int
    bytes: int
    memory: int


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method.

    Attributes:
        method: its name.
        source: the paper.
        idea: what a sub-model is.
        needs: of the server's proxy set: "", "proxy set" or "labelled proxy set".
        sizes: by tier, None where nothing fits; empty if the method cannot be used here.
        note: why it cannot.

    """

    method: str
    source: str
    idea: str
    needs: str
    sizes: dict[str, Size | None]
    note: str = ""


def method_rows(experiment: Experiment) -> Iterator[MethodRow]:
    """Yield a row for every method of the registry, for the experiment's model, tiers and training.

    Raises what `make_federation` raises.
    """
    federation = make_federation(experiment.changed(method="exclusive", proxy__epochs=0))
    tiers: dict[str, list[str]] = {name: [] for name in experiment.tiers}
    for name, device in federation.devices.items():
        tiers.setdefault(device.profile.tier, []).append(name)
    for name, method in METHODS.items():
        needs = ("proxy set" if method.unlabelled else "labelled proxy set") if method.proxy else ""
        row = MethodRow(name, method.source, method.idea, needs, {})
        try:
            own = replace(federation, experiment=experiment.changed(method=name))
            offers = own.compressor().specs()
        except DiastoleError as error:
            yield replace(row, note=str(error))
            continue
        yield replace(row, sizes={t: _size(fitting(own, offers, m)) for t, m in tiers.items() if m})


def _size(offer: Offer | None) -> Size | None:
    if offer is None:
        return None
    cost = offer.cost
    return Size(offer.spec.label, cost.parameters, cost.training_macs, max(cost.bytes_down, cost.bytes_up), cost.memory)
