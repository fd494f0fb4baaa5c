"""A plain Flower app, as a Flower user writes one: FedAvg and a torch loop. What benchmarks measure against.

Not part of any engine. `main` serves it from Flower's simulation for as long as its caller wants rounds.
"""

import sys
from collections.abc import Sequence
from functools import cache

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn import functional as F

from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig

client = ClientApp()


@cache
def load_data(partition: int, examples: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a partition's random examples; loaded once a process."""
    draws = torch.Generator().manual_seed(partition)
    return torch.randn(examples, *shape, generator=draws), torch.randint(10, (examples,), generator=draws)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the arrays on this client's partition."""
    config = message.content.config_records["config"]
    config_model = ModelConfig.from_json(str(config["model"]))
    size, batch, rate = int(str(config["examples"])), int(str(config["batch"])), float(str(config["lr"]))
    model = build(config_model)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    x, y = load_data(int(context.node_config["partition-id"]), size, config_model.input_shape)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    model.train()
    total = 0.0
    order = torch.randperm(size)
    for start in range(0, size, batch):
        index = order[start : start + batch]
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x[index]), y[index])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        total += loss.item() * len(index)
    metrics = MetricRecord({"train_loss": total / size, "num-examples": size})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}),
        reply_to=message,
    )


def main(arguments: Sequence[str]) -> None:
    """Serve `MODEL DEVICES EXAMPLES BATCH RATE`: for each number read, run that many rounds and answer with a line."""
    model, devices, examples, batch, rate = arguments
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(build(ModelConfig.from_json(model)).state_dict())
        config = ConfigRecord({"model": model, "examples": int(examples), "batch": int(batch), "lr": float(rate)})
        for line in sys.stdin:
            strategy = FedAvg(fraction_evaluate=0.0)
            strategy.start(grid, arrays, num_rounds=int(line), train_config=config)
            sys.stdout.write("done\n")
            sys.stdout.flush()

    backend = {
        "init_args": {"log_to_driver": False, "logging_level": "ERROR"},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server, client, int(devices), backend_config=backend)  # type: ignore[arg-type]
