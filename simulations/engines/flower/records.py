"""What travels in Flower messages: tensors as an `ArrayRecord`, a task's words and numbers as a `ConfigRecord`.

No pickle of ours: arrays are NumPy's format (Flower forbids pickled objects in it), everything else JSON or numbers.
"""

from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from diastole.models.levers import Levers
from diastole.models.methods.registry import read_spec
from diastole.models.networks.config import ModelConfig
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.models.training import TrainConfig
from diastole.proto.profile import Profile
from diastole.server.link import Failure

ARRAYS, CONFIG, METRICS, PROFILE = "arrays", "config", "metrics", "profile"
KINDS, SPEEDS, LEVERS = "kinds", "speeds", "levers"
EXAMPLES, LOSS, SECONDS = "num-examples", "train_loss", "seconds"


OWN = -1
"""In the place of a partition's number: the client's own examples."""


@dataclass(frozen=True, slots=True)
class Order:
    """A task for a client, which is to train the arrays that come with it.

    Attributes:
        model: the global model.
        task: the sub-model whose parameters the arrays are, and how to train it.
        partition: whose examples, where the client holds those of many; `OWN` for its own.
        metrics: by name, that a client is to evaluate by beside the loss; by default what suits the loss.

    """

    model: ModelConfig
    task: Task
    partition: int = OWN
    metrics: tuple[str, ...] = ()

    def record(self) -> ConfigRecord:
        """Return the order as Flower sends it."""
        task = self.task
        return ConfigRecord(
            {
                "model": self.model.to_json(),
                "task": task.task_id,
                "server-round": task.round,
                "device": task.device,
                "spec": task.spec.to_json(),
                "training": task.training.at(task.progress).to_json(),
                "seed": task.seed,
                "progress": task.progress,
                "levers": task.levers.to_json(),
                "partition": self.partition,
                "metrics": list(self.metrics),
            }
        )

    @staticmethod
    def read(record: ConfigRecord) -> "Order":
        """Read what `record` made. Raises `ModelError`, `SpecError`, or `KeyError` if something is missing."""
        task = Task(
            str(record["task"]),
            int(str(record["server-round"])),
            str(record["device"]),
            read_spec(str(record["spec"])),
            TrainConfig.from_json(str(record["training"])),
            int(str(record["seed"])),
            float(str(record["progress"])),
            Levers.from_json(str(record["levers"])),
        )
        model, metrics = ModelConfig.from_json(str(record["model"])), record["metrics"]
        names = tuple(map(str, metrics)) if isinstance(metrics, list) else ()
        return Order(model, task, int(str(record["partition"])), names)


def arrays_of(state: State) -> ArrayRecord:
    """Return a state as Flower sends it, to the bit."""
    return ArrayRecord.from_torch_state_dict(state)


def state_of(arrays: ArrayRecord) -> State:
    """Return the state in `arrays`, a copy."""
    return dict(arrays.to_torch_state_dict())


def reply_record(update: Update) -> RecordDict:
    """Return what a client answers when it has trained, under the keys that Flower's own strategies use."""
    report = update.report
    metrics = MetricRecord({EXAMPLES: report.examples, LOSS: report.loss, SECONDS: report.seconds})
    return RecordDict({ARRAYS: arrays_of(update.state), METRICS: metrics})


def outcome(task: Task, reply: Message) -> Update | Failure:
    """Return what a client's reply to `task` comes to.

    Any reply with one `ArrayRecord` and the number of examples will do; loss and seconds are 0 where they are not
    given. An error that the client's own code raised, and a reply of another form, are faults of the device.
    """
    if reply.has_error():
        faulty = reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Failure(task.device, _last_line(reply.error.reason or f"error {reply.error.code}"), faulty)
    try:
        (arrays,) = reply.content.array_records.values()
        (metrics,) = reply.content.metric_records.values()
        numbers = [float(str(metrics.get(key, 0.0))) for key in (LOSS, SECONDS)]
        return Update(task, state_of(arrays), Report(int(str(metrics[EXAMPLES])), numbers[0], numbers[1]))
    except (KeyError, TypeError, ValueError) as error:
        return Failure(task.device, f"a reply that cannot be read: {_last_line(repr(error))}", faulty=True)


def profile_record(profile: Profile) -> RecordDict:
    """Return a profile as a client answers it to a query; what is unknown is left out."""
    # Flower's messages carry tensors as they are, so nobody asks which codecs a node knows.
    left_out = ("codecs", "speeds", "levers", "class_counts")
    known = {k: v for k, v in profile.as_dict().items() if v is not None and k not in left_out}
    kinds, speeds = [*profile.speeds], [*profile.speeds.values()]
    lists = {KINDS: kinds, SPEEDS: speeds, LEVERS: [*profile.levers]} if kinds else {LEVERS: [*profile.levers]}
    return RecordDict({PROFILE: ConfigRecord(known | lists)})  # type: ignore[arg-type]


def profile_of(reply: Message) -> Profile | None:
    """Return the profile in a reply, or None if there is none that makes sense."""
    if reply.has_error() or PROFILE not in reply.content.config_records:
        return None
    fields = dict(reply.content.config_records[PROFILE])
    types = {"tier": str, "examples": int, "memory": int, "cores": int, "simd_block": int}
    lists = {name: fields.pop(name, []) for name in (LEVERS, KINDS, SPEEDS)}
    if (
        not {"tier", "examples"}
        <= set(fields)
        <= set(Profile.__dataclass_fields__) - {"codecs", "speeds", "class_counts"}
    ):
        return None
    if not all(isinstance(found, list) for found in lists.values()):
        return None
    if any(not isinstance(value, types.get(name, (int, float))) for name, value in fields.items()):
        return None
    levers, kinds, speeds = lists.values()
    try:
        message = Profile(**fields, levers=tuple(map(str, levers))).message("")  # type: ignore[arg-type]
    except ValueError:
        return None
    for kind, speed in zip(kinds, speeds, strict=False):  # type: ignore[arg-type]
        message.speeds.add(kind=str(kind), per_second=float(speed) if isinstance(speed, int | float) else 0.0)
    # As it would come from an agent, speeds that make no sense are left out.
    return replace(Profile.from_message(message), memory=fields.get("memory"))  # type: ignore[arg-type]


def _last_line(text: str) -> str:
    # Ray puts a whole traceback into an error, and what was raised last.
    lines = [line.strip(" '>") for line in text.strip().splitlines() if line.strip(" '>")]
    return lines[-1].removeprefix("Exception ClientAppException occurred. Message: ") if lines else "no reason given"
