"""A device's own work: train one sub-model on the local examples."""

import threading
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from diastole.client.choices import ExecutionPlan
from diastole.client.own_fit import fit_by_own
from diastole.client.plans.apply import apply, arrange, running
from diastole.client.plans.plan import REFERENCE, Plan
from diastole.client.plans.planned import plan_for
from diastole.models.hollow import hollow
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.blame import blamed
from diastole.models.networks.custom.made import move_constants
from diastole.models.seeds import generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, check_schema, check_state
from diastole.models.task import Report, Task, Update
from diastole.models.training import Examples, fit, learns, never
from diastole.models.trainstate import TrainState

MODULES_KEPT = 32
CPU = torch.device("cpu")
_THREAD = threading.local()


def train(
    model: ModelConfig,
    task: Task,
    state: State,
    examples: Examples,
    plan: ExecutionPlan | Plan = "reference",
    threads: int = 1,
    stopped: Callable[[], bool] = never,
    between: Callable[[TrainState], None] = lambda state: None,
    saved: Mapping[str, Tensor] | None = None,
) -> Update:
    """Train a task's sub-model; under the same plan, such as `reference`, the same arguments give the same bits.

    Args:
        model: the global model.
        task: which sub-model, how, and from which seed.
        state: the sub-model's parameters, which stay as they are.
        examples: to train on.
        plan: how the arithmetic is run; "fast" looks for the fastest way, once, which may take seconds.
        threads: that a plan which is yet to be found may have; `reference` has one.
        stopped: asked before each step whether to stop.
        between: is called after each step; a training loop of a user's own does not call it.
        saved: where an earlier run of this very task stood after a step, from which training goes on.

    Raises `SpecError` if `model` cannot have the sub-model, `StateError` if `state` is not its parameters or `saved` is
    of another task, `ModelError` if a user's own module or training loop raises anything, and `StoppedError` if it is
    stopped.

    """
    training = task.training
    place = next((tensor.device for tensor in state.values()), CPU)
    if not isinstance(plan, Plan):
        plan = plan_for(plan, model, task.spec, training, threads, place.type)
    began, busy = time.perf_counter(), time.process_time()
    module = _module(model, task.spec, plan, task.levers.part)
    # On a card, looking at each value would wait for it; whoever sent something that is not finite gets as much back.
    (check_state if place == CPU else check_schema)(state, dict(module.named_parameters()))
    module.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    if place != CPU:
        move_constants(module, place)
    if plan.channels_last:
        arrange(module)
    learning = [name for name, weight in module.named_parameters() if weight.requires_grad]
    with running(plan, place.type), torch.enable_grad(), blamed(model, "in training"):
        if training.fit and learns(module):
            # What it may have done to the module beside training it must not meet the next task.
            _THREAD.modules.clear()
            loss = fit_by_own(module, examples, task, state, stopped)
        else:
            changes = generator(task.seed, "augment")
            draws = generator(task.seed)
            loss = fit(module, examples, training, draws, task.progress, changes, stopped, between, saved, task.levers)
    # The next task assigns tensors of its own, so these need no copy.
    weights = dict(module.named_parameters())
    trained = {name: _alone(weights[name].detach().to(state[name].device)) for name in learning}
    processor = time.process_time() - busy if place == CPU else None
    return Update(task, trained, Report(len(examples), loss, time.perf_counter() - began, processor=processor))


def _alone(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor, a copy if it is a part of a larger one, which it would keep in memory."""
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)


def _module(model: ModelConfig, spec: SubModelSpec, plan: Plan, part: str) -> nn.Module:
    """Return this thread's module for a sub-model: building one costs as much as a small training step."""
    if not hasattr(_THREAD, "modules"):
        _THREAD.modules = {}
    modules: dict[tuple[ModelConfig, SubModelSpec, Plan, str], nn.Module] = _THREAD.modules
    key = (model, spec, plan, part)
    if key not in modules:
        if len(modules) >= MODULES_KEPT:
            modules.clear()
        with hollow():
            module = build(model, spec, part)
        if plan != REFERENCE:
            apply(module, plan)
        modules[key] = module
    return modules[key]
