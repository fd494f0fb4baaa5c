"""What a device answers with: a trained model in a file, which may be replaced while it is used."""

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diastole.client.data import check_tokens
from diastole.client.errors import DataError
from diastole.client.model_file import ModelFile
from diastole.client.streaming import Stream
from diastole.models.methods.registry import filled
from diastole.models.networks.config import ModelConfig
from diastole.models.recalibrate import ready
from diastole.models.scoring import EVALUATED
from diastole.models.seeds import reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import outputs_of

CURRENT = "model.safetensors"
"""In an agent's state folder: the sub-model that the device trained last."""

PERSONAL = "personal.safetensors"
"""Likewise: that model, trained further for this device alone."""

_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,80}")


def personal_of(run_id: str) -> str:
    """Return the name of the file of a device's own model of one run, which outlives other runs' beside it."""
    known = run_id if _PLAIN.fullmatch(run_id) else hashlib.sha256(run_id.encode(errors="replace")).hexdigest()[:12]
    return f"personal-{known}.safetensors"


def as_file(model: ModelConfig, spec: SubModelSpec, round_number: int, state: State, x: Tensor) -> bytes:
    """Return the content of a file of one sub-model, for a device's own use.

    Args:
        model: the global model.
        spec: the sub-model.
        round_number: in which it was trained.
        state: its parameters.
        x: the device's training inputs `[n, ...]`, of which batch normalisation gets its statistics.

    Raises `ModelError` if it needs statistics and there are fewer than two inputs.

    """
    module = ready(filled(model, spec, state), x.cpu())
    values = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    parts, specs = {spec.label: values}, {spec.label: spec}
    return ModelFile(model, spec.method, {}, round_number, {}, specs, parts, {}, spec.label).to_bytes()


class Predictor:
    """A model and its answers; `refresh` takes up a file that has been replaced."""

    def __init__(self, path: Path, tier: str | None = None, size: str | None = None) -> None:
        """Read a model of a file: the whole one, or a tier's, or a size's. Raises `ModelFileError`."""
        self._path, self._tier, self._size = path, tier, size
        self._seen = _stamp(path)
        self._read()

    def _read(self) -> None:
        file = ModelFile.read(self._path)
        self.module: nn.Module = file.module(self._tier, self._size)
        self.model: ModelConfig = file.config
        self.label = self._size or (file.tiers[self._tier] if self._tier else file.whole)
        self.round = file.round

    def refresh(self) -> bool:
        """Take up another model if the file has been replaced by one; True if it has. Raises `ModelFileError`."""
        stamp = _stamp(self._path)
        if stamp in (self._seen, None):
            return False
        self._read()
        self._seen = stamp
        return True

    def inputs(self, values: Any) -> Tensor:
        """Return numbers, `[n, *input_shape]` or one example, as the model's inputs. Raises `DataError`."""
        return as_tensor(values, self.model.input_shape, self.model)

    def outputs(self, x: Tensor) -> Tensor:
        """Return the model's outputs `[n, ...]` for inputs `[n, *input_shape]`."""
        with reference_plan(), torch.inference_mode():
            return torch.cat([outputs_of(self.module, part) for part in torch.split(x, EVALUATED)])

    def stream(self, hop: int, *, approximate: bool = False) -> Stream:
        """Return a stream of windows that begin `hop` samples apart. Raises `ModelError` if the model has none."""
        return Stream(self.module, self.model.input_shape[-1], hop, approximate=approximate)


def as_tensor(values: Any, shape: tuple[int, ...], model: ModelConfig) -> Tensor:
    """Return numbers as `[n, *shape]`, of which -1 is any length and n may be left out. Raises `DataError`."""
    accepted = f"numbers [n, {', '.join('any' if size < 0 else str(size) for size in shape)}] are accepted"
    try:
        x = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise DataError(f"inputs that are no array of numbers; {accepted}") from None
    x = x[None] if x.ndim == len(shape) else x
    fits = x.ndim == len(shape) + 1 and all(size in (-1, found) for size, found in zip(shape, x.shape[1:], strict=True))
    if not fits or not x.numel():
        raise DataError(f"inputs of the shape {list(x.shape)}; {accepted}")
    if not math.isfinite(float(x.double().abs().sum())):
        raise DataError("inputs with a value that is not finite; finite float32 values are accepted")
    check_tokens("inputs", x, model)
    return x.to(model.dtype)


def labels(outputs: Tensor, model: ModelConfig) -> list[Any] | None:
    """Return the most likely class of each output `[n, classes]`; None for a model that gives something else."""
    return outputs.argmax(1).tolist() if outputs.ndim == 2 and model.gives == (model.classes,) else None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
