"""The runs that a coordinator offers, and those of them that a device can serve."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from diastole.client.bounds import MOST_RUNS, check_name
from diastole.client.channel import schema_of
from diastole.client.errors import DataError, MessageError
from diastole.client.measured import Measured
from diastole.models.errors import ModelError
from diastole.models.networks.config import ModelConfig
from diastole.proto.words import plain
from diastole.v1 import device_pb2 as pb

LOG = logging.getLogger(__name__)
VERSION = version("diastole")


@dataclass(slots=True)
class Offered:
    """Reads what a coordinator says of its runs.

    Attributes:
        fits: raises `DataError` for a model that the device's examples do not fit.
        speeds: returns the device's speeds at training models, if it has measured them.
        models: the global model of each run that the device serves, by run.

    """

    fits: Callable[[ModelConfig], None] = lambda model: None
    speeds: Callable[[Iterable[ModelConfig]], Measured | None] = lambda models: None
    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    _schemas: dict[str, str] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def run_of(self, task: pb.TrainTask) -> tuple[str, ModelConfig]:
        """Return the run of a task, and its global model; a coordinator of an earlier version has one run alone.

        Raises `MessageError` for a run that the device does not serve.
        """
        run_id = task.run_id or next(iter(self.models), "")
        if run_id not in self.models:
            raise MessageError(f"a task of run {run_id[:40]!r}, which this device does not serve")
        return run_id, self.models[run_id]

    def read(self, hello: pb.HelloReply) -> pb.JoinRequest:
        """Return the runs that the device serves, as it joins, and know their models from now on.

        A run that it cannot serve beside others is left out, in words. Raises `DataError` if it can serve none and is
        not to wait for others, `ModelError` for a model that it cannot read, as one of a coordinator of another version
        may be, and `MessageError` for what no honest coordinator says.
        """
        # One of an earlier version has one run, and does not list it.
        listed = list(hello.runs) or [pb.OfferedRun(run_id=hello.run_id, model_json=hello.model_json)]
        if not hello.runs and (hello.keeps or not hello.model_json):
            # Nothing is trained there now; whether to wait for more, the answer to the join says.
            listed = []
        if len(listed) > MOST_RUNS:
            raise MessageError(f"{len(listed)} runs are offered; {MOST_RUNS} at most are accepted")
        models, why = dict[str, ModelConfig](), dict[str, DataError]()
        for run in listed:
            run_id = run.run_id and check_name("run", run.run_id)
            model = _model(run.model_json, hello.version)
            try:
                self.fits(model)
                models[run_id] = model
            except DataError as error:
                why[run_id] = error
        if why and not models and not hello.keeps:
            raise next(iter(why.values()))
        for run_id in why.keys() - self._told:
            LOG.warning("run %s is left to others: %s", plain(run_id), why[run_id])
        self._told = set(why)
        texts = {run.run_id: run.model_json for run in listed}
        self._schemas = {
            text: self._schemas.get(text) or schema_of(models[run]) for run, text in texts.items() if run in models
        }
        self.models = models
        request = pb.JoinRequest(protocol_version=hello.protocol_version)
        if hello.runs:
            served = [pb.ServedRun(run_id=run, model_schema=self._schemas[texts[run]]) for run in models]
            request.runs.extend(served)
        elif models:
            request.model_schema = self._schemas[hello.model_json]
        return request


def _model(text: str, coordinators: str) -> ModelConfig:
    """Return a model; what cannot be read may be of another version, which is then said."""
    try:
        return ModelConfig.from_json(text)
    except ModelError as error:
        if coordinators == VERSION:
            raise
        other = f"diastole {plain(coordinators, 40)}" if coordinators else "an earlier diastole"
        text = f"the coordinator has {other}, this agent {VERSION}; install the same version on both"
        raise ModelError(f"{error}; {text}") from None
