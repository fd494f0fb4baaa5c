"""Training many devices of one sub-model together: their batches padded to one shape, one optimiser on the stack."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diastole.models.crossing import send
from diastole.models.state import State
from diastole.models.steps import buffers, step
from diastole.models.training import Examples, TrainConfig
from diastole.simulations.engines.agreement import NOBODY, Beside, Program
from diastole.simulations.engines.altered import Altered
from diastole.simulations.engines.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Together:
    """What devices trained together have come to: a stack, and each one's mean loss of its last epoch `[devices]`.

    The stack has what was trained.
    """

    stack: State
    losses: Tensor


def train_together(
    run: Program,
    state: State,
    training: TrainConfig,
    seeds: Sequence[int],
    examples: Sequence[Examples],
    stopped: Callable[[], bool] = lambda: False,
    untrained: Collection[str] = (),
    least: int = 1,
    progress: float = 0.0,
) -> Together | None:
    """Train one sub-model on several devices, each from its own seed on its own examples.

    Devices come with those that have the most examples first: whoever is done is then at the end of every stack, and
    the steps of the others leave it out. Returns None once `stopped` says so; it is asked before every step. Tensors
    of the names in `untrained` stay as they are, and devices share them. A batch needs `least` examples. The learning
    rate is that of `progress`, the share of the run's rounds that is over.
    """
    training = training.at(progress)
    pool = Examples(torch.cat([item.x for item in examples]), torch.cat([item.y for item in examples]))
    schedule, place = Schedule.draw(seeds, [len(item) for item in examples], training, least=least), pool.x.device
    index, weight, counted = (send(t, place) for t in (schedule.index, schedule.weight, schedule.counted))
    altered = Altered(training, seeds) if training.augment else None
    every = {name: send(tensor, place).expand(len(seeds), *tensor.shape) for name, tensor in state.items()}
    stack = {name: tensor.clone() for name, tensor in every.items() if name not in untrained}
    every |= stack
    memory, losses = buffers(training, list(stack.values())), torch.zeros(len(seeds), device=place)
    beside = _labelled(training, examples, place) if training.balance else None
    with torch.enable_grad(), _repeatable(place):
        for number, (active, size) in enumerate(schedule.sizes):
            if stopped():
                return None
            part = (number, slice(size), slice(active))
            weights = {name: tensor[:active] for name, tensor in stack.items()}
            rows, counts = index[part], schedule.counts[number][:active]
            batch = altered.batch(pool, rows, counts) if altered else pool.subset(rows)
            every_one = {name: tensor[:active] for name, tensor in every.items()}
            gradients, loss = run(every_one, batch.x, batch.y, weight[part], beside and beside.first(active))
            kept = [[tensor[:active] for tensor in tensors] for tensors in memory]
            step(
                training, list(weights.values()), [gradients[name] for name in weights], kept, number + 1, stacked=True
            )
            losses[:active] += loss * counted[number, :active]
    return Together(stack, losses)


def _labelled(training: TrainConfig, examples: Sequence[Examples], place: torch.device) -> Beside:
    """Return the devices' labels, and nothing else that a step may depend on."""
    labels = [training.criterion.labels(item.y) for item in examples]
    return replace(Beside.none(len(examples), place), labels=pad_sequence(labels, True, NOBODY))


def _repeatable(device: torch.device) -> AbstractContextManager[None]:
    """Keep a GPU from algorithms whose sums change from run to run; the precision of convolutions stays as it is."""
    if device.type == "cpu":
        return nullcontext()
    cudnn = torch.backends.cudnn
    return cudnn.flags(enabled=True, deterministic=True, allow_tf32=cudnn.allow_tf32)
