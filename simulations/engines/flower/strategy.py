"""diastole's planner, compressors and exact aggregation as a Flower `Strategy`: tiers for an existing `ServerApp`."""

from collections.abc import Iterable
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from diastole.models.accumulator import Accumulator
from diastole.models.compressor import Compressor, Offer, Proxy, Return
from diastole.models.errors import StateError
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import derive_seed, reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import TrainConfig
from diastole.proto.profile import Profile
from diastole.server.admission import check, expected_state
from diastole.server.link import Failure, Task, Update
from diastole.server.optimisers import ServerOptimiser, ServerOptimiserConfig
from diastole.server.planner import Planner
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
        compressor: Compressor,
        training: TrainConfig,
        *,
        seed: int = 0,
        cohort: int | None = None,
        proxy: Proxy | None = None,
        optimiser: ServerOptimiserConfig | None = None,
        evaluate: bool = False,
    ) -> None:
        """Set the strategy up.

        Args:
            model: the global model.
            compressor: makes sub-models of it.
            training: how clients train.
            seed: every draw derives from it.
            cohort: nodes a round; None for all that something fits.
            proxy: the server's own examples, for compressors that need them.
            optimiser: the server's; FedAvg by default.
            evaluate: let every node evaluate, after each round, the sub-model it trained.

        """
        self._model, self._compressor, self._training = model, compressor, training
        self._seed, self._proxy, self._evaluate = seed, proxy, evaluate
        self._offers = compressor.specs()
        self._planner = Planner(self._offers, training, seed, cohort, assign=compressor.assign)
        self._expected = {offer.spec: expected_state(model, offer.spec) for offer in self._offers}
        self._optimiser = ServerOptimiser(optimiser or ServerOptimiserConfig())
        self._profiles: dict[int, Profile] = {}
        self._state: State = {}
        self._prepared, self._rounds = 0, 1
        self._given: dict[int, Task] = {}

    def start(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds as Flower does; methods are told how many there are."""
        self._rounds = num_rounds
        return super().start(grid, initial_arrays, num_rounds, *args, **kwargs)

    def summary(self) -> None:
        """Log the sizes on offer."""
        for offer in self._offers:
            log(INFO, "\t├── %s: %d bytes to train", offer.spec.label, offer.cost.memory)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message with its sub-model for each node of the round."""
        self._state = state_of(arrays)
        self._ask(grid)
        online = {str(node): self._profiles[node] for node in grid.get_node_ids() if node in self._profiles}
        with reference_plan():
            self._prepare(server_round)
            plan = self._planner.plan(self._moment(server_round, "plan"), online)
            self._given = {int(item.device): self._task(server_round, item.device, item.offer) for item in plan}
        log(INFO, "configure_train: %d of %d nodes", len(plan), len(online))
        return self._messages(self._given.values(), MessageType.TRAIN, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies and return the new global model, or nothing if no reply counts."""
        updates = sorted(self._admitted(replies), key=lambda update: update.task.device)
        accumulator = Accumulator(self._state)
        with reference_plan():
            returns = [Return(update.task.spec, update.state, update.examples) for update in updates]
            seed = derive_seed(self._seed, server_round, "reconcile")
            weights = self._compressor.reconcile(returns, seed) if returns else []
            for update, weight in zip(updates, weights, strict=True):
                try:
                    accumulator.fold(self._compressor.dilate(update.state, update.task.spec), weight)
                except StateError as error:
                    log(WARNING, "node %s: %s", update.task.device, error)
            if not accumulator.count:
                return None, None
            self._state = self._optimiser.step(self._state, *accumulator.mean())
        examples = sum(update.examples for update in updates)
        loss = sum(update.loss * update.examples for update in updates) / examples
        return arrays_of(self._state), MetricRecord({LOSS: loss, EXAMPLES: examples, "replies": accumulator.count})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message with its new sub-model for each node that trained, if nodes evaluate at all."""
        if not self._evaluate:
            return []
        with reference_plan():
            self._prepare(server_round + 1)
            given = [
                self._task(server_round, task.device, next(o for o in self._offers if o.spec == task.spec))
                for task in self._given.values()
            ]
        return self._messages(given, MessageType.EVALUATE, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the means of the nodes' metrics, weighted by examples, or None without any."""
        totals: dict[str, float] = {}
        count = 0
        for reply in replies:
            records = [] if reply.has_error() else list(reply.content.metric_records.values())
            if len(records) != 1 or not isinstance(examples := records[0].get(EXAMPLES), int) or examples < 1:
                log(WARNING, "node %d: an evaluation that cannot be read", reply.metadata.src_node_id)
                continue
            count += examples
            for name, value in records[0].items():
                if isinstance(value, (int, float)) and name != EXAMPLES:
                    totals[name] = totals.get(name, 0.0) + value * examples
        return MetricRecord({name: total / count for name, total in totals.items()}) if count else None

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

    def _prepare(self, number: int) -> None:
        """Prepare the compressor for round `number`, once."""
        if self._prepared != number:
            self._compressor.prepare(self._state, self._proxy, self._moment(number, "prepare"))
            self._prepared = number

    def _moment(self, number: int, purpose: str) -> Moment:
        return Moment(number, self._rounds, derive_seed(self._seed, number, purpose))

    def _task(self, number: int, device: str, offer: Offer) -> Task:
        seed = derive_seed(self._seed, number, device, "train")
        state, progress = self._compressor.compress(offer.spec), self._moment(number, "train").progress
        return Task(f"r{number}-{device}", number, device, offer.spec, state, self._training, seed, progress)

    def _messages(self, tasks: Iterable[Task], kind: str, config: ConfigRecord) -> list[Message]:
        messages = []
        arrays: dict[SubModelSpec, ArrayRecord] = {}
        for task in tasks:
            if task.spec not in arrays:
                arrays[task.spec] = arrays_of(task.state)
            order = Order(self._model, task.spec, task.training, task.seed, task.progress).record()
            record = ConfigRecord({**config, **order, "server-round": task.round})
            content = RecordDict({ARRAYS: arrays[task.spec], CONFIG: record})
            messages.append(Message(content, int(task.device), kind, group_id=str(task.round)))
        return messages

    def _admitted(self, replies: Iterable[Message]) -> Iterable[Update]:
        """Yield the updates that pass every check; log all others."""
        for reply in replies:
            node = reply.metadata.src_node_id
            task = self._given.get(node)
            found = outcome(task, reply) if task else Failure(str(node), "was given no task", faulty=True)
            if isinstance(found, Update):
                try:
                    check(found, self._expected[found.task.spec], self._profiles[node].examples, len(self._given))
                    yield found
                    continue
                except StateError as error:
                    found = Failure(str(node), str(error), faulty=True)
            log(WARNING, "node %s: %s", found.device, found.reason)
