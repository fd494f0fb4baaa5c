"""An experiment from a file, or of one's own network and examples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diastole.client.errors import DataError
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.sets import kind_of, load
from diastole.experiments.errors import ExperimentError
from diastole.experiments.initial import register as weights
from diastole.models.allowed import give
from diastole.models.networks.custom import own as custom
from diastole.models.training import Examples
from diastole.simulations.simulation import Simulation

TIERS = {"large": 1.0, "medium": 0.5, "small": 0.25}
PROXY_SHARE, MOST_PROXY = 0.1, 100


class Experiment:
    """What is trained, on what, how, and by which method; and, for simulations, on which devices.

    Attributes:
        settings: every key of an experiment's file.

    """

    settings: Simulation

    def __init__(
        self,
        *,
        model: nn.Module | str | Mapping[str, Any],
        train: object,
        test: object,
        tiers: Mapping[str, float] | None = None,
        devices: int | Mapping[str, int] = 8,
        rounds: int = 10,
        method: str = "diastole",
        classes: int | None = None,
        users: object = None,
        initial: Path | str | nn.Module | Mapping[str, Tensor] | None = None,
        name: str = "experiment",
        seed: int = 0,
        loss: str | Callable[..., Any] = "",
        metrics: Sequence[str | Callable[..., Any]] = (),
        fit: str | Callable[..., Any] = "",
        **settings: Any,
    ) -> None:
        """Make an experiment of your own network and examples.

        Args:
            model: a module that gives logits `[n, classes]`, whose weights training starts from; or a network of
                diastole's, by its name or as the table `[model]` of a file.
            train: what devices, and the server's proxy set, are given: `(x, y)`, tensors or arrays, or a torch
                `Dataset` of such pairs. x is floating-point `[n, ...]`, y whole numbers `[n]`.
            test: what the models are tested on, likewise.
            tiers: for each, the share of the network's channels that its devices can just train; by default three.
            devices: how many, spread over the tiers, or for each tier.
            rounds: of the run.
            method: how sub-models are made; `diastole methods` lists them.
            classes: labels run from 0 to `classes - 1`; by default as far as they reach.
            users: the natural client of each training example, whole numbers `[n]`, for `partition={"kind": "users"}`.
            initial: the weights that training starts from: a safetensors file, tensors by the network's names, or a
                module that has them. `model__fresh=["head.*"]` leaves some out.
            name: for reports.
            seed: every random draw derives from it.
            loss: what training lowers: a name, or a function of a batch's outputs and targets that returns the loss of
                each example `[n]`, or their mean; cross-entropy by default.
            metrics: what models are judged by, the first one above all: names, or functions of outputs and targets that
                return a number for each example; by default what suits the loss.
            fit: a training loop of your own for devices, a function `fit(module, examples, task)`.
            settings: other keys and tables of a file, such as `training={"epochs": 2}` or `training__epochs=2`.

        Raises `ExperimentError`, `DataError` or `ModelError` in one line.

        """
        examples = {part: as_examples(part, given) for part, given in (("train", train), ("test", test))}
        whole = [each.y for each in examples.values() if each.y.numel() and not each.y.is_floating_point()]
        most = max((int(y.max()) for y in whole), default=0)
        natural = None if users is None else torch.as_tensor(users)
        self._given: Dataset | None = Dataset(name, examples["train"], examples["test"], classes or most + 1, natural)
        document: dict[str, Any] = {
            "name": name,
            "seed": seed,
            "method": method,
            "data": {"proxy": min(MOST_PROXY, int(PROXY_SHARE * len(examples["train"])))},
            "tiers": _tiers(dict(TIERS if tiers is None else tiers), devices),
            "rounds": {"count": rounds},
        }
        if isinstance(model, nn.Module):
            document["model"] = {"name": "custom", "factory": custom.register(model)}
        else:
            document["model"] = {"name": model} if isinstance(model, str) else dict(model)
        if initial is not None:
            document["model"]["initial"] = Path(initial) if isinstance(initial, Path | str) else weights(initial)
        own = {
            "metrics": [_name(metric) for metric in metrics],
            "training__loss": _name(loss),
            "training__fit": _name(fit),
        }
        self.settings = Simulation.parse(document, name).changed(**settings, **{k: v for k, v in own.items() if v})

    @classmethod
    def load(cls, path: Path | str, data: Path | str | None = None, **changes: Any) -> "Experiment":
        """Read an experiment from a TOML file, with some keys changed, such as `method="width"` or `rounds__count=3`.

        `data` is a file or folder of any kind (docs/data.md) in the place of the file's data set. Raises
        `ExperimentError`.
        """
        if data is not None:
            changes = {"data__name": kind_of(Path(data)), "data__path": Path(data)} | changes
        found = cls.__new__(cls)
        found.settings, found._given = Simulation.load(Path(path)).changed(**changes), None
        return found

    def changed(self, **changes: Any) -> "Experiment":
        """Return a copy with some keys changed; a key of a table is written `table__key`. Raises `ExperimentError`."""
        found = Experiment.__new__(Experiment)
        found.settings, found._given = self.settings.changed(**changes), self._given
        return found

    @property
    def given(self) -> Dataset | None:
        """The examples, if they were given in Python."""
        return self._given

    @cached_property
    def dataset(self) -> Dataset:
        """The examples. Raises `DataError`."""
        data = self.settings.data
        return self._given or load(data.name, data.path, self.settings.reading())

    def __repr__(self) -> str:
        settings = self.settings
        tiers = ", ".join(f"{tier.devices} {name} ({tier.width:g})" for name, tier in settings.tiers.items())
        return f"<Experiment {settings.name!r}: {settings.method}, {settings.rounds.count} rounds, devices: {tiers}>"


def _name(function: str | Callable[..., Any]) -> str:
    return function if isinstance(function, str) else give(function)


def as_examples(what: str, given: object) -> Examples:
    """Return examples from `(x, y)` or from a data set of such pairs. Raises `DataError`."""
    try:
        if isinstance(given, Examples):
            return given
        if isinstance(given, tuple | list) and len(given) == 2:
            x, y = (torch.as_tensor(part) for part in given)
        elif isinstance(given, Iterable) or hasattr(given, "__getitem__"):
            x, y = _stacked(given)
        else:
            raise TypeError(type(given).__name__)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        brief = next(iter(str(error).splitlines()), "")[:200]
        raise DataError(f"{what}: expected (x, y), or a data set of such pairs: {brief}") from None
    return Examples(x.float() if x.is_floating_point() else x, y)


def _stacked(given: Any) -> tuple[Tensor, Tensor]:
    pairs = [given[k] for k in range(len(given))] if hasattr(given, "__len__") else list(given)
    return torch.stack([torch.as_tensor(x) for x, _ in pairs]), torch.stack([torch.as_tensor(y) for _, y in pairs])


def _tiers(widths: Mapping[str, float], devices: int | Mapping[str, int]) -> dict[str, dict[str, Any]]:
    if isinstance(devices, Mapping):
        unknown = set(devices) - set(widths)
        if unknown:
            raise ExperimentError(f"devices: there is no tier {min(unknown)!r}; there are {', '.join(widths)}")
        counts = [devices.get(name, 0) for name in widths]
    else:
        # Small devices are the more frequent ones.
        each, rest = divmod(devices, max(1, len(widths)))
        counts = [each + (place >= len(widths) - rest) for place in range(len(widths))]
    return {name: {"devices": n, "width": width} for (name, width), n in zip(widths.items(), counts, strict=True)}
