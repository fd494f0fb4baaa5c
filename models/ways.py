"""Ways: the levers by which a sub-model can be trained, and what it then costs, measured from the module itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor, nn

from diastole.models.augment import CUTMIX, MIXUP, parse
from diastole.models.cost import Cost, first_step
from diastole.models.dropout import draw_from
from diastole.models.gradients import gradients, kept
from diastole.models.kinds import PER_CALL
from diastole.models.levers import HALF_STATE, MICRO_BATCH, NO_LEVERS, RECOMPUTE, Levers
from diastole.models.methods.registry import build, cost_of, has_part
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.training import Examples, TrainConfig, learns, loss_of, outputs_of
from diastole.models.work import training_work

CHECKED = 3
"""Examples of the step in which a lever shows that it gives the plain gradients: in parts of two, one is left over."""


@dataclass(frozen=True, slots=True)
class Way:
    """Levers, and what training a sub-model with them costs."""

    levers: Levers
    cost: Cost


@lru_cache(maxsize=1 << 12)
def ways_of(model: ModelConfig, spec: SubModelSpec, training: TrainConfig) -> tuple[Way, ...]:
    """Return every way to train a sub-model that `training.levers` allow and that is right for it; measured once.

    The plain way comes first, then the others, cheapest in time first by `training_work`, but for those that another
    one betters: in memory, and in every kind of work, so on any device. Those with an optimiser state in bfloat16 come
    last, because only they change the result. Behind all these come the ways to train a part, those of one part of
    `training.parts` after those of another, in the same order.

    Recomputation and micro-batches are left out where they do not give the plain gradients of a small random step:
    where examples see each other, or an objective's loss is not a mean over examples or picks something at random. Of
    a training loop of a user's own only the plain way is known.
    """
    if training.fit or not (training.levers or training.parts):
        return (Way(NO_LEVERS, cost_of(model, spec, training)),)
    allowed = tuple(_levers(model, spec, training))
    ways = _thrifty(model, spec, training, allowed)
    for part in training.parts:
        if has_part(model, spec, part):
            ways += _thrifty(model, spec, training, [replace(each, part=part) for each in allowed])
    return tuple(ways)


def _thrifty(model: ModelConfig, spec: SubModelSpec, training: TrainConfig, allowed: Sequence[Levers]) -> list[Way]:
    """Return the ways of the levers, the plainest first, then those that save memory or work, cheapest first."""
    first, *found = (Way(levers, cost_by(model, spec, training, levers)) for levers in allowed)
    found.sort(key=lambda way: (way.levers.half_state, training_work(way.cost, training, training.batch_size)))
    kept = [first]
    for way in found:
        if not any(_betters(other, way) for other in kept):
            kept.append(way)
    return kept


def _betters(one: Way, other: Way) -> bool:
    """Return whether a way takes no more memory than another, and no more of any kind of work."""
    if one.levers.half_state > other.levers.half_state or one.cost.memory > other.cost.memory:
        return False
    pairs = [(one.cost.training_macs, other.cost.training_macs), (one.cost.calls, other.cost.calls)]
    pairs += [(amount, other.cost.work.get(kind, 0.0)) for kind, amount in one.cost.work.items()]
    return all(less <= more for less, more in pairs)


@lru_cache(maxsize=1 << 12)
def cost_by(model: ModelConfig, spec: SubModelSpec, training: TrainConfig, levers: Levers) -> Cost:
    """Return what training a sub-model with these levers costs. Raises what `build` raises."""
    plain = cost_of(model, spec, training, part=levers.part)
    if levers == Levers(part=levers.part):
        return plain
    cost = cost_of(model, spec, training, levers.recompute, levers.part) if levers.recompute else plain
    batch = training.batch_size
    size = min(levers.micro_batch or batch, batch)
    means = training.optimiser == "adam" or training.momentum > 0
    memory = cost.memory - (batch - size) * cost.saved
    if levers.half_state and means:
        memory -= cost.bytes_up // 2
    again = cost.training_macs / plain.training_macs if plain.training_macs else 1.0
    # A second forward pass moves its activations once more, and calls again; each part of a batch calls again.
    moved = int(plain.memory * again) - memory
    parts = -(-batch // size)
    work = {kind: amount * parts if kind in PER_CALL else amount for kind, amount in cost.work.items()}
    # Of the largest operator, a part may be weights and their gradients.
    passing = min(cost.passing, cost.passing * size // batch + 2 * cost.bytes_up)
    return replace(cost, memory=memory, moved=moved, calls=again * parts, work=work, passing=passing)


def _levers(model: ModelConfig, spec: SubModelSpec, training: TrainConfig) -> Iterator[Levers]:
    """Yield none, and the levers that are allowed and right, together and alone."""
    recompute = RECOMPUTE in training.levers and agrees(model, spec, training, Levers(recompute=True))
    parted = MICRO_BATCH in training.levers and agrees(model, spec, training, Levers(micro_batch=2))
    means = training.optimiser == "adam" or training.momentum > 0
    half = HALF_STATE in training.levers and means
    sizes, size = [0], training.batch_size
    while parted and size > 1:
        size = -(-size // 2)
        sizes.append(size)
    for levers in product((False, True)[: 1 + recompute], sizes, (False, True)[: 1 + half]):
        yield Levers(*levers)


def agrees(model: ModelConfig, spec: SubModelSpec, training: TrainConfig, levers: Levers) -> bool:
    """Return whether a step with these levers gives the plain gradients, on a small random draw, in whole training."""
    if levers.micro_batch and any(parse(each)[0] in (MIXUP, CUTMIX) for each in training.augment):
        return False
    with torch.random.fork_rng(devices=[]), reference_plan():
        torch.manual_seed(0)
        module = build(model, spec)
        if not learns(module):
            return False
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    # What starts as zero hides what lies behind it.
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws))
        module.eval()
        try:
            with torch.no_grad():
                outputs = outputs_of(module, x := model.drawn(CHECKED, draws))
            examples = Examples(x, _targets(training, outputs, draws))
            plain, other = (_gradients(module, examples, training, each) for each in (NO_LEVERS, levers))
        except Exception:  # noqa: BLE001 (a user's own code may raise anything)
            return False
    largest = max((float(gradient.abs().max()) for gradient in plain if gradient is not None), default=0.0)
    return all(_same(a, b, largest) for a, b in zip(plain, other, strict=True))


def _targets(training: TrainConfig, outputs: Tensor, draws: torch.Generator) -> Tensor:
    """Return random targets for a batch of outputs."""
    criterion = training.criterion
    blank = criterion.blank(outputs)
    if blank.is_floating_point():
        values = torch.rand(blank.shape, generator=draws)
        return values.round() if criterion.kind(blank) == "many" else values
    return torch.randint(criterion.classes_second(outputs).shape[1], blank.shape, generator=draws)


def _gradients(module: nn.Module, examples: Examples, training: TrainConfig, levers: Levers) -> list[Tensor | None]:
    step = first_step(examples, training.criterion)
    module.train()
    if not levers.micro_batch:
        draw_from(module, step.draws)
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.enable_grad(), kept(module, levers, step.draws):
        return list(gradients(lambda part: loss_of(module, part, step), examples, weights, levers)[1])


def _same(one: Tensor | None, other: Tensor | None, largest: float) -> bool:
    """Return whether two gradients are the same; `largest` is the largest entry of any gradient."""
    if one is None or other is None:
        return one is other
    # Some gradients are zero but for rounding, such as that of the bias of an attention's keys.
    size = 1e-4 * float(one.abs().max()) + 1e-6 * largest
    return bool(torch.isfinite(one).all()) and torch.allclose(one, other, 1e-3, size)
