"""The client's side: a Flower `ClientApp` that trains what diastole's link or strategy sends."""

from collections.abc import Callable, Sequence
from functools import partial

from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from diastole.client.choices import ExecutionPlan
from diastole.client.training import train
from diastole.models.allowed import allow
from diastole.models.methods.registry import build
from diastole.models.recalibrate import ready
from diastole.models.scoring import evaluate
from diastole.models.training import Examples
from diastole.proto.errors import DiastoleError
from diastole.proto.profile import Profile
from diastole.simulations.engines.flower.partitions import Partitions
from diastole.simulations.engines.flower.records import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    METRICS,
    Order,
    profile_record,
    reply_record,
)
from diastole.simulations.engines.flower.records import state_of as read_state

Loader = Callable[[Order, Context], Examples]
"""Gives a client's examples for an order."""


def client_app(
    load: Loader,
    profile: Callable[[Context], Profile] | None = None,
    plan: ExecutionPlan = "reference",
    device: str = "cpu",
) -> ClientApp:
    """Return an app that trains and evaluates on what `load` gives and answers a query with its `profile`.

    Without a profile the strategy of this folder gives it nothing to do. It trains on the torch device `device`.
    """
    app = ClientApp()
    app.train()(partial(_train, load, plan, device))
    app.evaluate()(partial(_evaluate, load))
    if profile is not None:
        app.query()(partial(_describe, profile))
    return app


def simulated_app(
    partitions: Partitions, plan: ExecutionPlan, device: str = "cpu", functions: Sequence[str] = ()
) -> ClientApp:
    """Return the app of simulated devices, each of which is a partition; they may import a user's own `functions`."""
    return client_app(partial(_partition, partitions, tuple(functions)), plan=plan, device=device)


def _partition(partitions: Partitions, functions: Sequence[str], order: Order, context: Context) -> Examples:
    for name in functions:
        allow(name)
    return partitions.of(order.partition)


def _train(load: Loader, plan: ExecutionPlan, device: str, message: Message, context: Context) -> Message:
    try:
        order = Order.read(message.content.config_records[CONFIG])
        held, arrays = load(order, context), message.content.array_records[ARRAYS]
        examples = Examples(held.x.to(device), held.y.to(device))
        state = {name: tensor.to(device) for name, tensor in read_state(arrays).items()}
        update = train(order.model, order.task, state, examples, plan)
    except DiastoleError as error:
        # Raised, it would come back as a traceback.
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)
    return Message(reply_record(update), reply_to=message)


def _evaluate(load: Loader, message: Message, context: Context) -> Message:
    try:
        order = Order.read(message.content.config_records[CONFIG])
        examples = load(order, context)
        module = build(order.model, order.task.spec)
        module.load_state_dict(read_state(message.content.array_records[ARRAYS]))
        criterion = order.task.training.criterion
        names = order.metrics or criterion.metrics(examples.y)
        # There is no proxy set on a device; statistics of all that it has are nobody else's either.
        score = evaluate(ready(module, examples.x), examples, criterion, names)
    except DiastoleError as error:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)
    metrics = MetricRecord({EXAMPLES: len(examples), **score.metrics, "loss": score.loss})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


def _describe(profile: Callable[[Context], Profile], message: Message, context: Context) -> Message:
    return Message(profile_record(profile(context)), reply_to=message)
