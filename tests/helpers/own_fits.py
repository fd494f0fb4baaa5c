"""Training loops of users' own."""

import torch
from torch import Tensor, nn

from diastole.client.own_fit import LocalTask
from diastole.models.training import Examples


def plain(module: nn.Module, examples: Examples, task: LocalTask) -> float:
    """Take steps of torch's own SGD on the batches that this project's loop would draw."""
    training = task.training
    optimiser = torch.optim.SGD(module.parameters(), lr=training.learning_rate, momentum=training.momentum)
    total = 0.0
    for _ in range(training.epochs):
        total = 0.0
        for batch in torch.randperm(len(examples), generator=task.generator).split(training.batch_size):
            loss = task.loss(module, examples.x[batch], examples.y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(batch)
    return total / len(examples)


def noisy(module: nn.Module, examples: Examples, task: LocalTask) -> None:
    """Take a step on examples with noise of torch's global generator, and leave a mess."""
    loss = task.criterion.mean(module(examples.x + 0.1 * torch.randn(examples.x.shape)), examples.y)
    with torch.no_grad():
        for parameter, gradient in zip(
            module.parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True
        ):
            parameter -= task.training.learning_rate * gradient
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    module.eval().requires_grad_(False)
    module.register_forward_hook(lambda layer, x, y: y * 0)


def crash(module: nn.Module, examples: Examples, task: LocalTask) -> float:
    """Raise."""
    raise RuntimeError("on the\nrocks")


def words(module: nn.Module, examples: Examples, task: LocalTask) -> str:
    """Return no number."""
    return "all went well"


def diverge(module: nn.Module, examples: Examples, task: LocalTask) -> Tensor | float:
    """Leave, on one device, parameters and a loss that are not finite."""
    if task.device not in ("one", "device-00"):
        return plain(module, examples, task)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    return torch.tensor(torch.nan)


def replaced(module: nn.Module, examples: Examples, task: LocalTask) -> float:
    """Put a layer of another size in."""
    name, layer = next((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear))
    owner, _, own = name.rpartition(".")
    setattr(module.get_submodule(owner), own, nn.Linear(layer.in_features, layer.out_features + 1))
    return 0.0


def half(module: nn.Module, examples: Examples, task: LocalTask) -> float:
    """Leave numbers of another type."""
    module.half()
    return 0.0


not_a_function = 3
