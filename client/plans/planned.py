"""The plan of a sub-model on this device: the one that was found earlier, or the one that a search finds now."""

import logging
from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn

from diastole.client.choices import ExecutionPlan
from diastole.client.plans import cache
from diastole.client.plans.plan import REFERENCE, Plan
from diastole.client.plans.search import Search, search
from diastole.client.walls import out_of_memory
from diastole.models.allocator import give_back
from diastole.models.batches import least_batch
from diastole.models.hollow import hollow
from diastole.models.methods.registry import build, cost_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.made import move_constants
from diastole.models.seeds import generator
from diastole.models.spec import SubModelSpec
from diastole.models.training import Examples, TrainConfig, outputs_of

LOG = logging.getLogger(__name__)

FEWEST = 2
KEPT = 256
FOUND: dict[str, Plan] = {}
"""Plans by name, so that one that is asked for at each task is read once."""

SEARCH_MEMORY, SEARCH_BYTES = 1.5, 16 << 20
"""What a search takes: so many times the memory of training on the examples that it has, and so many bytes besides. Of
six networks in batches of 2 to 32, this process and the one that tries plans took 0.97 to 1.7 times together."""


def plan_for(
    wanted: ExecutionPlan,
    model: ModelConfig,
    spec: SubModelSpec,
    training: TrainConfig,
    threads: int = 1,
    place: str = "cpu",
    memory: int | None = None,
) -> Plan:
    """Return how a sub-model is to be trained on this device; a search takes seconds, once for each of its versions.

    Nothing of the device's own data is needed: a search uses random inputs.

    Args:
        wanted: "reference", which is the reference; or "fast".
        model: the global model.
        spec: which sub-model.
        training: how it is trained; a user's own training loop may do anything with a module, which stays as it is.
        threads: that it may have.
        place: the type of the torch device: "cpu", "cuda" or "mps".
        memory: bytes by which a search may let the process grow: it has fewer examples then, and where even few are too
            many, this call returns the reference; None for no limit.

    Raises `ModelError` or `SpecError` if `model` cannot have the sub-model.

    """
    if wanted == "reference":
        return REFERENCE
    if training.fit:
        return Plan(pages=True)
    name = _name(model, spec, training, threads, place)
    plan = FOUND.get(name) or cache.read(name)
    if plan is None:
        with cache.alone():
            plan = cache.read(name)
            if plan is None:
                few = training.batch_size if memory is None else _affordable(model, spec, training, memory)
                if not few:
                    LOG.warning("no memory to look for a fast plan of %s: it is trained by the reference", spec.label)
                    return REFERENCE
                try:
                    plan = searched(model, spec, replace(training, batch_size=few), threads, place).plan
                except (RuntimeError, MemoryError) as error:
                    if memory is None or not out_of_memory(error):
                        raise
                    LOG.warning("no memory to find a fast plan of %s: it is trained by the reference", spec.label)
                    return REFERENCE
                finally:
                    if memory is not None:
                        # Heap of a step that is kept for the next one counts against limits, and training lays it anew.
                        give_back()
                cache.write(name, plan)
    if len(FOUND) >= KEPT:
        FOUND.clear()
    FOUND[name] = plan
    return plan


@lru_cache(KEPT)
def _name(model: ModelConfig, spec: SubModelSpec, training: TrainConfig, threads: int, place: str) -> str:
    """Return the name under which a plan is kept."""
    with hollow():
        structure = _structure(build(model, spec))
    batch = [training.loss, str(training.batch_size), str(threads), place]
    return cache.key([structure, model.to_json(), spec.to_json(), *batch])


def _affordable(model: ModelConfig, spec: SubModelSpec, training: TrainConfig, memory: int) -> int:
    """Return on how many examples a search stays within `memory` bytes; 0 if on none."""
    cost, few = cost_of(model, spec, training), training.batch_size
    while SEARCH_MEMORY * (cost.memory - (training.batch_size - few) * cost.saved) + SEARCH_BYTES > memory:
        if few <= FEWEST:
            return 0
        few = max(FEWEST, few // 2)
    return few


def searched(
    model: ModelConfig, spec: SubModelSpec, training: TrainConfig, threads: int = 1, place: str = "cpu"
) -> Search:
    """Return what a search finds now; nothing for a user's module that cannot be tried."""
    try:
        module, batch = sample(model, spec, training)
    except Exception:  # noqa: BLE001 (training will say what is wrong)
        return Search(Plan(pages=True))
    device = torch.device(place)
    if place != "cpu":
        move_constants(module.to(device), device)
    return search(module, Examples(batch.x.to(device), batch.y.to(device)), training, threads)


def sample(model: ModelConfig, spec: SubModelSpec, training: TrainConfig) -> tuple[nn.Module, Examples]:
    """Return a sub-model as it is initialised, and a random batch of examples for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(model, spec)
    x = model.drawn(max(training.batch_size, least_batch(module)), generator("plan"))
    with torch.no_grad():
        outputs = outputs_of(module, x[: least_batch(module)])
    y = training.criterion.blank(outputs)
    return module, Examples(x, y[:1].expand(len(x), *y.shape[1:]))


def _structure(module: nn.Module) -> str:
    """Return what a module is made of; a user's own may be another under the same name."""
    shapes = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
    return f"{module} {shapes}"
