"""Answering with an exported file: `diastole infer --model small.onnx`."""

from pathlib import Path

from diastole.client.errors import ModelFileError
from diastole.client.inference import Predictor
from diastole.experiments.export.formats import FORMATS, Ran
from diastole.models.networks.config import ModelConfig
from diastole.proto.errors import DiastoleError
from diastole.proto.jsontext import from_json

SUFFIXES = {form.suffix: form for form in FORMATS.values()}


class FilePredictor(Predictor):
    """An exported model and its answers, by the engine that it was exported for."""

    def _read(self) -> None:
        path = self._path
        if self._tier or self._size:
            raise ModelFileError(f"{path}: holds one model; --tier and --size go with a model.safetensors")
        beside = path.with_name(path.name + ".json")
        try:
            card = from_json(beside.read_text())
            self.model: ModelConfig = ModelConfig.from_json(card["config"])
            self.label, self.round = str(card["model"]), int(card["rounds"])
            self.module = Ran(SUFFIXES[path.suffix].run(path.read_bytes()))
        except DiastoleError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(f"{path}: cannot be read with its card {beside.name} ({error})") from None
        except Exception as error:  # noqa: BLE001 (engines raise anything)
            raise ModelFileError(f"{path}: no model that can be run ({type(error).__name__})") from None


def predictor(path: Path, tier: str | None = None, size: str | None = None) -> Predictor:
    """Return what answers with a file: an exported one, or a `model.safetensors`. Raises `DiastoleError`."""
    return (FilePredictor if path.suffix in SUFFIXES else Predictor)(path, tier, size)
