"""What is exported: a run's models, and the examples by which they are chosen, calibrated and judged."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diastole.client.data import load_inputs
from diastole.client.inference import as_tensor
from diastole.client.model_file import ModelFile
from diastole.experiments.errors import ExportError
from diastole.experiments.experiment import Experiment
from diastole.experiments.report.report import REPORT
from diastole.experiments.run import make_run
from diastole.models.allowed import is_allowed
from diastole.models.export.plain import plain
from diastole.models.losses import Criterion, check_targets
from diastole.models.proxy import Proxy
from diastole.models.scoring import evaluate
from diastole.models.training import Examples, TrainConfig
from diastole.proto.errors import DiastoleError
from diastole.proto.jsontext import from_json

MODEL = "model.safetensors"


def find(run: Path | str) -> Path:
    """Return the model file of a run: of its folder, of a coordinator's state folder, or itself.

    Raises `ExportError` if there is none.
    """
    path = Path(run)
    places = [path / MODEL, path / "latest" / MODEL] if path.is_dir() else [path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ExportError(f"{path}: no run; a folder that a run has left, or its {MODEL}, is accepted")
    return found


def load(
    run: Path | str, tier: str | None = None, size: str | None = None, budget: int | str | None = None
) -> nn.Module:
    """Return a trained model of a run as a module of ordinary layers, in evaluation mode.

    Args:
        run: the folder that a run has left, a coordinator's state folder, or a `model.safetensors`.
        tier: the model of a tier; by default the whole one.
        size: the model of this label.
        budget: the largest one whose parameters take at most so many bytes, such as "2 MB".

    A "custom" model is made by its factory, which this process must be allowed to import. Raises `DiastoleError`.

    """
    return plain(ModelFile.read(find(run)).module(tier, size, budget))


@dataclass(frozen=True, slots=True)
class Known:
    """The examples by which models are chosen, calibrated and judged.

    Attributes:
        fit: what is calibrated on: the proxy set's training part. No labels are needed.
        choose: what models are chosen by: its validation part.
        test: what nothing is chosen by; None if it is not known.
        criterion: the loss.
        metrics: the first one decides.
        name: of the data.

    """

    fit: Tensor
    choose: Examples
    test: Examples | None
    criterion: Criterion
    metrics: tuple[str, ...]
    name: str

    def score(self, module: nn.Module, examples: Examples | None) -> float | None:
        """Return the deciding metric of a module; None without examples that have labels."""
        if examples is None or not len(examples) or not self.metrics or not Proxy(examples, examples).labelled:
            return None
        return evaluate(module, examples, self.criterion, self.metrics[:1]).metrics[self.metrics[0]]


@dataclass(frozen=True, slots=True)
class Source:
    """A run that is exported from.

    Attributes:
        path: of its model file.
        file: the models.
        digest: SHA-256 of that file.
        report: what the run said of itself; {} if that is not there.
        experiment: of the run, likewise None.
        why: why there is no experiment.

    """

    path: Path
    file: ModelFile
    digest: str
    report: Mapping[str, Any] = field(default_factory=dict)
    experiment: Experiment | None = None
    why: str = ""

    @staticmethod
    def open(run: Path | str) -> "Source":
        """Read a run's models, and its report if there is one. Raises `DiastoleError`."""
        path = find(run)
        file, digest = ModelFile.read(path), hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            report = from_json((path.parent / REPORT).read_text())
            return Source(path, file, digest, report, Experiment.parse(report["experiment"], str(path.parent / REPORT)))
        except FileNotFoundError:
            return Source(path, file, digest, why=f"there is no {REPORT} beside {path}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DiastoleError) as error:
            return Source(path, file, digest, why=f"{path.parent / REPORT} cannot be read: {error}")

    def known(self, data: Path | None = None) -> Known:
        """Return the examples of an archive with x, and y if there are labels; by default the run's own.

        Raises `ExportError` or `DataError` if they cannot be read.
        """
        if data is not None:
            return self._named(data)
        experiment = self._experiment()
        if experiment.data.proxy < 2:
            raise ExportError(
                f"{self.path}: the run had no proxy set to choose or calibrate by; --data FILE.npz names examples"
            )
        try:
            run = make_run(experiment)
        except DiastoleError as error:
            raise ExportError(f"the run's data cannot be read here ({error}); --data FILE.npz names examples") from None
        proxy = run.proxy or Proxy.empty()
        return Known(
            proxy.training.x,
            proxy.validation,
            run.test,
            experiment.training.criterion,
            run.metrics,
            f"{run.dataset.name}, proxy set of {len(proxy.training)} + {len(proxy.validation)}",
        )

    def _experiment(self) -> Experiment:
        if self.experiment is None:
            raise ExportError(f"{self.why}; --data FILE.npz names examples to choose and calibrate by")
        for name in filter(None, (self.experiment.model.factory, *self.experiment.functions)):
            # A report may have come from anywhere, and `make_run` allows what its experiment names.
            if not is_allowed(name):
                raise ExportError(f"the run used {name}, which would be imported; say --allow-factory {name}")
        return self.experiment

    def _named(self, path: Path) -> Known:
        config = self.file.config
        x, y = load_inputs(path)
        x = as_tensor(x, config.input_shape, config)
        training = self.experiment.training if self.experiment else TrainConfig()
        values = y is not None and y.is_floating_point()
        if self.experiment is None and values:
            training = TrainConfig(loss="mse")
        criterion = training.criterion
        if y is None:
            y = torch.full((len(x),), -1)
            return Known(x, Examples(x, y), None, criterion, (), str(path))
        check_targets(str(path), criterion, y, config.gives, config.classes)
        metrics = self.experiment.metrics if self.experiment else ()
        return Known(x, Examples(x, y), None, criterion, metrics or criterion.metrics(y), str(path))
