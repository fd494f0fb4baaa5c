"""diastole's rounds as a Flower `Strategy`: tiers for an existing `ServerApp`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, MetricRecordValues, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from diastole.models.method import Method
from diastole.models.networks.config import ModelConfig
from diastole.models.proxy import Proxy
from diastole.models.seeds import reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.models.training import TrainConfig
from diastole.proto.profile import Profile
from diastole.server.link import Failure
from diastole.server.opened import Opened
from diastole.server.optimisers import ServerOptimiserConfig
from diastole.server.planner import Limits
from diastole.server.processors import Processor
from diastole.server.proxy import ProxyConfig
from diastole.server.round import Rounds
from diastole.server.sampler import Sampler
from diastole.server.settings import RoundConfig, Settings
from diastole.simulations.engines.flower.errors import FlowerError
from diastole.simulations.engines.flower.records import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    LOSS,
    Order,
    arrays_of,
    outcome,
    profile_of,
    state_of,
)

QUERY_SECONDS = 60.0


class TierStrategy(Strategy):
    """Gives each Flower node the most capable sub-model that fits it, and dilates what comes back.

    A node tells what it is in answer to a query (`flower.client.client_app`, or any `ClientApp` whose query answers
    `records.profile_record`); one that does not takes no part. A train message has the sub-model's arrays and an
    `Order` under "config"; a reply needs one `ArrayRecord` of the same names and shapes and one `MetricRecord` with
    "num-examples", as for Flower's FedAvg. Replies with anything else are logged and left out.

    The initial arrays given to `start` are the parameters of the global model, and so are those of the result.
    """

    def __init__(
        self,
        model: ModelConfig,
        method: Method,
        training: TrainConfig,
        *,
        seed: int = 0,
        rounds: RoundConfig | None = None,
        proxy: Proxy | None = None,
        proxy_training: ProxyConfig | None = None,
        optimiser: ServerOptimiserConfig | None = None,
        limits: Mapping[str, Limits] | None = None,
        sampler: Sampler | None = None,
        processors: Sequence[Processor] = (),
        evaluate: bool = False,
        metrics: Sequence[str] = (),
    ) -> None:
        """Set the strategy up.

        Args:
            model: the global model.
            method: makes sub-models of it.
            training: how clients train.
            seed: every draw derives from it.
            rounds: nodes a round, quorum and deadline; how many rounds there are is told to `start`. A goal is refused:
                Flower's grid answers when every reply is there, and no sooner.
            proxy: the server's own examples, for methods that need them.
            proxy_training: the server's own training after each round.
            optimiser: the server's; FedAvg by default.
            limits: what the operator lets a node of a tier spend, by the tier's name.
            sampler: draws the nodes of a round.
            processors: what is done to each contribution and to their mean.
            evaluate: let every node evaluate, after each round, the sub-model that it trained.
            metrics: what nodes evaluate by beside the loss; by default what suits the loss.

        Raises `FlowerError` for a goal.

        """
        if rounds is not None and rounds.goal is not None:
            raise FlowerError(
                f"rounds.goal is {rounds.goal}; Flower's grid waits for every reply, so none is accepted: leave it out"
            )
        self._settings = Settings(
            model=model,
            training=training,
            rounds=rounds or RoundConfig(),
            seed=seed,
            optimiser=optimiser or ServerOptimiserConfig(),
            proxy_training=proxy_training or ProxyConfig(),
            limits=limits or {},
        )
        self._method, self._proxy, self._sampler, self._processors = method, proxy, sampler, processors
        self._evaluate, self._metrics = evaluate, tuple(metrics)
        self._profiles: dict[int, Profile] = {}
        self._rounds: Rounds | None = None
        self._opened = Opened(0, (), {}, {})

    def start(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds as Flower does; methods are told how many there are."""
        rounds = replace(self._settings.rounds, count=num_rounds)
        self._rounds = self._made(state_of(initial_arrays), replace(self._settings, rounds=rounds))
        return super().start(grid, initial_arrays, num_rounds, *args, **kwargs)

    def summary(self) -> None:
        """Log the sizes on offer."""
        for size in self._method.offers():
            log(INFO, "\t├── %s: %d bytes to train", size.spec.label, size.cost.memory)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message with its sub-model for each node of the round."""
        self._ask(grid)
        online = {str(node): self._profiles[node] for node in grid.get_node_ids() if node in self._profiles}
        if self._rounds is None:
            self._rounds = self._made(state_of(arrays), self._settings)
        with reference_plan():
            self._opened = self._rounds.open(server_round, online)
        log(INFO, "configure_train: %d of %d nodes", len(self._opened.tasks), len(online))
        return self._messages(self._opened.tasks, self._opened.states, MessageType.TRAIN, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round and return the global model; without metrics, and as it was, if the round does not count."""
        if self._rounds is None:
            return None, None
        folded = list[Update]()
        with reference_plan():
            updates = self._rounds.admit(self._opened, self._outcomes(replies), _refused)
            closed = self._rounds.close(self._opened, updates, folded.append, _refused)
        if closed.abandoned:
            log(WARNING, "round %d is abandoned: %s", server_round, closed.abandoned)
            return arrays_of(self._rounds.state), None
        examples = sum(update.examples for update in folded)
        means = _Means()
        for update in folded:
            means.add({LOSS: update.report.loss}, update.examples, update.spec.label)
        metrics = MetricRecord({LOSS: 0.0, **means.found(), EXAMPLES: examples, "replies": closed.updates})
        return arrays_of(self._rounds.state), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message with its new sub-model for each node that trained, if nodes evaluate at all."""
        if not self._evaluate:
            return []
        tasks = self._opened.tasks
        states = {spec: self._method.compress(spec) for spec in {task.spec for task in tasks}}
        return self._messages(tasks, states, MessageType.EVALUATE, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the means of the nodes' metrics, weighted by examples, or None without any.

        Those over the nodes of one size are named by its label too: "accuracy/width 0.5".
        """
        means, sizes = _Means(), {task.device: task.spec.label for task in self._opened.tasks}
        for reply in replies:
            records = [] if reply.has_error() else list(reply.content.metric_records.values())
            if len(records) != 1 or not isinstance(examples := records[0].get(EXAMPLES), int) or examples < 1:
                log(WARNING, "node %d: an evaluation that cannot be read", reply.metadata.src_node_id)
                continue
            values = {k: float(v) for k, v in records[0].items() if isinstance(v, (int, float)) and k != EXAMPLES}
            means.add(values, examples, sizes.get(str(reply.metadata.src_node_id), ""))
        found = means.found()
        return MetricRecord(found) if found else None

    def _ask(self, grid: Grid) -> None:
        """Ask nodes that are new what they are."""
        new = [node for node in grid.get_node_ids() if node not in self._profiles]
        if not new:
            return
        questions = [Message(RecordDict(), node, MessageType.QUERY) for node in new]
        for reply in grid.send_and_receive(questions, timeout=QUERY_SECONDS):
            profile = profile_of(reply)
            if profile is None:
                log(WARNING, "node %d does not tell what it is, and takes no part", reply.metadata.src_node_id)
            else:
                self._profiles[reply.metadata.src_node_id] = profile

    def _made(self, state: State, settings: Settings) -> Rounds:
        """Return rounds from a global state, the first of which is prepared."""
        rounds = Rounds(settings, self._method, state, self._proxy, sampler=self._sampler, processors=self._processors)
        with reference_plan():
            rounds.prepare(1)
        return rounds

    def _messages(
        self, tasks: Iterable[Task], states: Mapping[SubModelSpec, State], kind: str, config: ConfigRecord
    ) -> list[Message]:
        arrays = {spec: arrays_of(state) for spec, state in states.items()}
        messages = []
        for task in tasks:
            record = ConfigRecord({**config, **Order(self._settings.model, task, metrics=self._metrics).record()})
            content = RecordDict({ARRAYS: arrays[task.spec], CONFIG: record})
            messages.append(Message(content, int(task.device), kind, group_id=str(task.round)))
        return messages

    def _outcomes(self, replies: Iterable[Message]) -> Iterator[Update | Failure]:
        """Yield what comes of each reply."""
        tasks = {task.device: task for task in self._opened.tasks}
        for reply in replies:
            node = str(reply.metadata.src_node_id)
            yield outcome(tasks[node], reply) if node in tasks else Failure(node, "was given no task", faulty=True)


class _Means:
    """Means of metrics, weighted by examples: of all nodes, and of those of each size."""

    def __init__(self) -> None:
        self._sums = dict[str, tuple[float, int]]()

    def add(self, values: Mapping[str, float], examples: int, size: str) -> None:
        """Add what a node of a size, if it has one, found on its examples."""
        for name, value in values.items():
            for key in (name, f"{name}/{size}") if size else (name,):
                total, count = self._sums.get(key, (0.0, 0))
                self._sums[key] = (total + value * examples, count + examples)

    def found(self) -> dict[str, MetricRecordValues]:
        """Return the means by name, and by "name/SIZE"."""
        return {key: total / max(1, count) for key, (total, count) in self._sums.items()}


def _refused(failure: Failure) -> None:
    log(WARNING, "node %s: %s", failure.device, failure.reason)
