"""A task as a device reads it: whether it makes sense, and whether the device can and may do it."""

import math
from dataclasses import replace

from torch import nn

from diastole.client.bounds import check_sizes, check_task
from diastole.client.errors import BudgetError
from diastole.models.augment import check_augment
from diastole.models.cost import Cost, standing
from diastole.models.errors import ModelError, brief
from diastole.models.hollow import hollow
from diastole.models.levers import Levers
from diastole.models.losses import check_targets
from diastole.models.methods.registry import build, read_spec
from diastole.models.networks.config import ModelConfig
from diastole.models.parts import train_only
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, tensor_bytes
from diastole.models.task import Task
from diastole.models.training import Examples, TrainConfig
from diastole.models.ways import cost_by
from diastole.proto.codec import EXACT, find
from diastole.proto.errors import DiastoleError
from diastole.v1 import device_pb2 as pb


def read_offer(
    wanted: pb.TrainTask,
    device: str,
    model: ModelConfig,
    examples: Examples,
    memory: int | None,
    room: int | None = None,
) -> tuple[Task, State]:
    """Return a task that this device can do, before anything of it is downloaded, and tensors like those it gets anew.

    Args:
        wanted: the task as it came.
        device: name of this device.
        model: the global model.
        examples: that the device would train on.
        memory: bytes that the tensors of training may take; None for no limit.
        room: bytes that are left before a wall, of which all counts that training takes; None if no wall is known.

    Raises `MessageError` for what no honest coordinator says, `PayloadError`, `SpecError` or `ModelError` for what this
    device cannot read or build, `BudgetError` for what it may not spend.

    """
    check_task(wanted)
    spec, training = read_spec(wanted.spec_json), TrainConfig.from_json(wanted.training_json)
    levers = Levers.from_json(wanted.levers_json)
    for codec in (wanted.codec, wanted.coding.change, wanted.coding.update):
        find(codec or EXACT.name)
    check_targets("examples", training.criterion, examples.y, model.gives, model.classes)
    tokens = model.vocabulary > 0
    check_augment("training", training.augment, training.criterion, model.input_shape, examples.y, tokens)
    module = _built(model, spec)
    state: State = dict(module.named_parameters())
    like = {name: weight for name, weight in state.items() if weight.requires_grad}
    check_sizes(wanted, len(state), tensor_bytes(state))
    if levers.part:
        train_only(module, levers.part)
    if memory is not None or room is not None:
        coding = wanted.coding
        feedback = find(coding.update or EXACT.name).feedback
        held = tensor_bytes(like) * (bool(coding.version) + feedback)
        _check_memory(module, model, spec, training, levers, len(examples), (memory, room), held)
    progress, threads = wanted.progress, wanted.threads
    return Task(wanted.task_id, wanted.round, device, spec, training, wanted.seed, progress, levers, threads), like


def cost_here(model: ModelConfig, spec: SubModelSpec, training: TrainConfig, levers: Levers, examples: int) -> Cost:
    """Return what training costs on so many examples, which may be fewer than a batch."""
    return cost_by(model, spec, replace(training, batch_size=min(training.batch_size, examples)), levers)


def _built(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    try:
        with hollow():
            return build(model, spec)
    except DiastoleError:
        raise
    except Exception as error:  # noqa: BLE001 (numbers from outside may break any layer)
        raise ModelError(f"{spec.label} cannot be built: {brief(error)}") from None


def _check_memory(
    module: nn.Module,
    model: ModelConfig,
    spec: SubModelSpec,
    training: TrainConfig,
    levers: Levers,
    examples: int,
    limits: tuple[int | None, int | None],
    held: int,
) -> None:
    """Raise `BudgetError` if tensors take more than the first of the `limits`, or all that training takes the second.

    `held` are the bytes that a device keeps from task to task by the task's codecs.
    """
    memory, room = (math.inf if limit is None else limit for limit in limits)
    # The step that measures the rest takes memory itself, so what is known without it comes first.
    needed, more = standing(module, training, levers.half_state), 0
    least = min(memory, room)
    if needed <= least:
        try:
            cost = cost_here(model, spec, training, levers, examples)
        except DiastoleError:
            raise
        except (RuntimeError, MemoryError) as error:
            raise BudgetError(f"{spec.label} cannot be measured within {least} bytes: {brief(error)}") from None
        needed, more = cost.memory, cost.passing + held
    if needed > least:
        raise BudgetError(f"{spec.label} takes {needed} bytes to train; this device offers {least}")
    if needed + more > room:
        raise BudgetError(
            f"{spec.label} takes {needed} bytes to train and up to {more} more for moments; this device has {room} left"
        )
