"""A chosen model with fewer layers or fewer channels, without training it further."""

from dataclasses import replace

from torch import Tensor, nn

from diastole.experiments.errors import ExportError
from diastole.experiments.export.search import Candidate
from diastole.experiments.export.source import Known
from diastole.models.errors import ModelError
from diastole.models.export.channels import pruned
from diastole.models.export.counting import forward_macs, latency
from diastole.models.export.depth import Depth
from diastole.models.export.plain import parameter_bytes
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import channels

DEPTH, CHANNELS = "depth", "channels"
WAYS = (DEPTH, CHANNELS)
FITTED = 128
"""Examples by which changes are judged and layers fitted."""

SECONDS = 0.03
"""Of processor time for each measurement of a layer."""


def compressed(
    found: Candidate, way: str, keep: float, known: Known | None, config: ModelConfig
) -> tuple[Candidate, str]:
    """Return a candidate in a smaller form, and a note on what was done.

    Args:
        found: what was chosen.
        way: one of `WAYS`.
        keep: share of its time, or of its channels, in (0, 1).
        known: has the examples that layers are fitted to; no labels are needed.
        config: the global model.

    Raises `ExportError` if it cannot be made smaller in this way.

    """
    if known is None or not len(known.fit):
        raise ExportError("--compress fits layers to examples, and there are none; --data FILE.npz names some")
    x = known.fit[:FITTED]
    try:
        if way == DEPTH:
            made, note = _shallower(found.module, keep, x, config)
        else:
            made, gone = pruned(found.module, x, keep, blocks_of(found.module, config))
            note = f"{gone} channels left out by LASSO, and layers solved anew by least squares on {len(x)} examples."
    except ModelError as error:
        raise ExportError(f"--compress {way}: {error}") from None
    made = made.eval().requires_grad_(False)
    return replace(found, module=made, size=parameter_bytes(made), macs=forward_macs(made, config.blank(1))), note


def _shallower(module: nn.Module, keep: float, x: Tensor, config: ModelConfig) -> tuple[nn.Module, str]:
    blocks = blocks_of(module, config)
    depth = Depth(module, blocks, x, channels(config) if blocks else 1)
    plan = depth.plan(keep, lambda layer, one: latency(layer, one, SECONDS))
    made = depth.build(plan.changes)
    share = plan.seconds / plan.whole
    return made, f"Depth compressed to {share:.0%} of the time as it was predicted from its layers: {plan.words}."


def blocks_of(module: nn.Module, config: ModelConfig) -> list[str]:
    """Return the paths of a network's blocks, empty for a network without blocks."""
    stages = getattr(module, "stages", None)
    if not isinstance(stages, nn.ModuleList) or not (config.blocks or config.stages):
        return []
    return [f"stages.{number}.{name}" for number, stage in enumerate(stages) for name, _ in stage.named_children()]
