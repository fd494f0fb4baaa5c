"""Which examples each of many devices trains on at each step, padded to one shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from diastole.models.batches import cuts
from diastole.models.crossing import send
from diastole.models.seeds import generator
from diastole.models.training import TrainConfig


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which examples each device trains on at each step, padded to one shape.

    Attributes:
        index: rows of the devices' examples; `[steps, batch, devices]`. Padding repeats a device's own first example.
        weight: of each in its device's mean loss, zero for padding; likewise.
        counted: what a step's loss adds to the mean loss of the last epoch; `[steps, devices]`.
        sizes: of each step, the devices that still train (the first ones) and the largest batch among them.
        counts: of each step, the examples of each device.

    """

    index: Tensor
    weight: Tensor
    counted: Tensor
    sizes: Sequence[tuple[int, int]]
    counts: Sequence[Sequence[int]]

    @staticmethod
    def draw(
        seeds: Sequence[int],
        counts: Sequence[int],
        training: TrainConfig,
        starts: Sequence[int] | None = None,
        least: int = 1,
    ) -> "Schedule":
        """Draw each device's batches exactly as `models.training.fit` does; the largest count comes first.

        `starts` are the rows of the devices' first examples; by default one device's come behind another's. `least` is
        how many examples a batch needs.
        """
        size, devices, epochs = widest(training, counts[0], least), len(seeds), training.epochs
        first = torch.tensor(list(accumulate(counts, initial=0))[:-1] if starts is None else starts)
        parts = {count: cuts(count, training.batch_size, least) for count in set(counts)}
        steps = [epochs * len(parts[count]) for count in counts]
        index = torch.zeros(max(steps), size, devices, dtype=torch.int64)
        weight, counted = torch.zeros(index.shape), torch.zeros(max(steps), devices)
        alike: dict[int, list[int]] = {}
        for k, count in enumerate(counts):
            alike.setdefault(count, []).append(k)
        for count, members in alike.items():
            each, mine = len(parts[count]), steps[members[0]]
            if not mine:
                continue
            columns, drawn = torch.tensor(members), []
            for k in members:
                draws = generator(seeds[k])
                drawn += [torch.randperm(count, generator=draws) for _ in range(epochs)]
            places = torch.tensor([cut.start for cut in parts[count]])[:, None] + torch.arange(size)
            real = places < torch.tensor([cut.stop for cut in parts[count]])[:, None]
            orders = torch.stack(drawn)[:, places.clamp(max=count - 1)].masked_fill_(~real, 0)
            batch = real.sum(1, keepdim=True)
            rows = orders.view(len(members), mine, size) + first[columns][:, None, None]
            index[:mine, :, columns] = rows.permute(1, 2, 0)
            weight[:mine, :, columns] = (real / batch).repeat(epochs, 1)[:, :, None]
            counted[mine - each : mine, columns] = (batch / count).expand(each, len(members))
        active = [sum(mine > number for mine in steps) for number in range(max(steps))]
        each_step = (weight > 0).sum(1)
        sizes = each_step.amax(1).tolist()
        return Schedule(index, weight, counted, list(zip(active, sizes, strict=True)), each_step.tolist())

    def to(self, device: torch.device) -> "Schedule":
        """Return the same on a card, to which it goes as one block."""
        if device.type == "cpu":
            return self
        parts = [self.index.flatten().view(torch.float32), self.weight.flatten(), self.counted.flatten()]
        block = send(torch.cat(parts), device)
        index, weight, counted = torch.split(block, [part.numel() for part in parts])
        return Schedule(
            index.view(torch.int64).view(self.index.shape),
            weight.view(self.weight.shape),
            counted.view(self.counted.shape),
            self.sizes,
            self.counts,
        )


def widest(training: TrainConfig, count: int, least: int) -> int:
    """Return the most examples of a step, of devices of at most so many."""
    return min(training.batch_size + least - 1, count)
