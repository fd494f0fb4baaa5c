"""What a round takes of a coordinator's memory under a method that looks at all its updates at once."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from diastole.models.accumulator import Accumulator
from diastole.models.methods.fedconv.conv import ConvConfig, ConvMethod
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.proxy import Proxy
from diastole.models.seeds import generator
from diastole.models.state import tensor_bytes
from diastole.models.task import Report, Task, Update
from diastole.models.training import Examples, TrainConfig
from diastole.proto.payload import encode, load

WIDTHS = (0.5, 1.0)
LOOK_SECONDS = 0.002


def peak(model: ModelConfig, count: int) -> tuple[int, int]:
    """Return the most bytes without a file that this process has in a FedConv round, and those of its updates.

    So many updates of the smaller size are memory-mapped, as a coordinator maps those that have come, weighed and
    folded. Pages of files do not count: the system takes them back where memory is short. Linux only.
    """
    config = ConvConfig(epochs=1, weight_epochs=1, batch_size=32)
    method, draws = ConvMethod(model, WIDTHS, TrainConfig(), config), generator("needs-all")
    x, y = torch.randn(64, *model.input_shape, generator=draws), torch.arange(64) % model.classes
    state = method.prepare(initial_state(model, 0), Proxy(Examples(x[:32], y[:32]), Examples(x[32:], y[32:])), Moment())
    spec = method.offers()[0].spec
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "update"
        path.write_bytes(encode({name: tensor + 1e-3 for name, tensor in method.compress(spec).items()}))

        def update(number: int) -> Update:
            task = Task(f"r1-{number}", 1, f"{number}", spec, TrainConfig(), 0)
            return Update(task, load(path), Report(1, 1.0, 1.0))

        updates = [update(number) for number in range(count)]

        def settle() -> None:
            sums = Accumulator(state)
            for each, weight in method.weigh(updates, Moment()):
                sums.fold(method.dilate(each.state, spec), weight)

        return _most(settle), count * tensor_bytes(updates[0].state)


def _most(work: Callable[[], None]) -> int:
    """Return the most bytes without a file that this process has while it works."""
    found, over = [anonymous()], threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            found.append(anonymous())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        work()
    finally:
        over.set()
        looking.join()
    return max(found)


def anonymous() -> int:
    """Return the bytes of memory of this process that are no pages of a file."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
