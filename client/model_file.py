"""`model.safetensors`: a trained global model and its sub-models, in one file that says itself what it holds.

Tensors without ":" in their names are the global model's; those named `LABEL:NAME` are the sub-model LABEL's, and those
named `:NAME` what the method has learned beside. The file's metadata, under the key "diastole", is JSON: what
`_Document` lists; other keys say in words what the models are.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from diastole.client.errors import ModelFileError
from diastole.models.hollow import hollow
from diastole.models.loading import fill
from diastole.models.methods.registry import build, read_spec
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec, one_line
from diastole.models.state import State
from diastole.proto.errors import DiastoleError
from diastole.proto.files import write_bytes

FORMAT, KEY = 1, "diastole"
ABOUT = ("task", "data", "card")
"""Keys of a file's metadata beside `KEY` that are read again."""

LARGEST_METADATA = 4 << 20
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


class _Document(BaseModel):
    """The metadata of a file."""

    model_config = ConfigDict(extra="forbid")

    format: int = Field(ge=1, le=FORMAT)
    version: str = Field(max_length=100)
    model: str
    method: str = Field(max_length=200)
    options: dict[str, Any]
    round: int = Field(ge=0)
    sizes: dict[str, str]
    tiers: dict[str, str]
    whole: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A trained global model and its sub-models.

    Attributes:
        config: the global model.
        method: what made the sub-models.
        options: of the method, as the experiment had them.
        round: the last that was closed.
        state: the global model's parameters.
        specs: of each sub-model, by its label.
        parts: the parameters of each, likewise.
        tiers: which sub-model is each tier's.
        whole: the label of the global model as people use it.
        about: what else the file says of itself, to whoever reads its metadata, such as the task.
        kept: what the method has learned that its other sub-models need, beside the global state.

    """

    config: ModelConfig
    method: str
    options: Mapping[str, Any]
    round: int
    state: State
    specs: Mapping[str, SubModelSpec]
    parts: Mapping[str, State]
    tiers: Mapping[str, str]
    whole: str
    about: Mapping[str, str] = field(default_factory=dict)
    kept: State = field(default_factory=dict)

    def module(self, tier: str | None = None, size: str | None = None, budget: int | str | None = None) -> nn.Module:
        """Return one of the models as a module in evaluation mode; see `Result.model`. Raises `ModelFileError`."""
        label = self._label(tier, size, budget)
        module = build(self.config, self.specs[label])
        fill(module, {name: tensor.clone() for name, tensor in self.parts[label].items()})
        return module.eval()

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        document = _Document(
            format=FORMAT,
            version=version("diastole"),
            model=self.config.to_json(),
            method=self.method,
            options=dict(self.options),
            round=self.round,
            sizes={label: spec.to_json() for label, spec in self.specs.items()},
            tiers=dict(self.tiers),
            whole=self.whole,
        )
        tensors = {name: tensor.contiguous() for name, tensor in self.state.items()}
        for label, state in self.parts.items():
            # Copies: parts of one tensor may not share memory in a file.
            tensors |= {f"{label}:{name}": tensor.clone().contiguous() for name, tensor in state.items()}
        tensors |= {f":{name}": tensor.clone().contiguous() for name, tensor in self.kept.items()}
        return _ordered(safetensors.torch.save(tensors, {KEY: document.model_dump_json(), **self._said()}))

    def _said(self) -> dict[str, str]:
        """Return what a file says of itself to people and to other programs."""
        config = self.config
        kind = "int64" if config.tokens else "float32"
        return {
            **self.about,
            "network": config.name,
            "method": self.method,
            "classes": str(config.classes),
            "input": f"[n, {', '.join(map(str, config.input_shape))}] {kind}",
            "output": f"[n, {', '.join(map(str, config.gives))}]",
            "models": ", ".join(self.specs),
            "made by": "diastole: diastole.load(path), diastole infer --model",
        }

    @staticmethod
    def read(path: Path) -> "ModelFile":
        """Read a file. Raises `ModelFileError` in one line if it is none, or is garbled."""
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
                text = said.get(KEY, "")
                if not text or len(text) > LARGEST_METADATA:
                    raise ModelFileError(f"{path}: says nothing of a diastole model; a model.safetensors is accepted")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            document = _Document.model_validate_json(text)
            config = ModelConfig.from_json(document.model)
            specs = {label: read_spec(spec) for label, spec in document.sizes.items()}
        except FileNotFoundError:
            raise ModelFileError(f"{path}: no such file; the path of a model.safetensors is accepted") from None
        except ValidationError as error:
            raise ModelFileError(f"{path}: not a diastole model: {one_line(error)}") from None
        except ModelFileError:
            raise
        except (OSError, SafetensorError, DiastoleError, ValueError, KeyError, TypeError) as error:
            brief = next(iter(str(error).splitlines()), "")[:200]
            raise ModelFileError(f"{path}: not a diastole model ({brief})") from None
        parts = {label: _part(tensors, label) for label in specs}
        if document.whole not in specs or not set(document.tiers.values()) <= set(specs):
            raise ModelFileError(f"{path}: not a diastole model: it names a size that it does not hold")
        state = {name: tensor for name, tensor in tensors.items() if ":" not in name}
        made = (document.method, document.options, document.round)
        about = {key: said[key] for key in ABOUT if key in said}
        kept = _part(tensors, "")
        found = ModelFile(config, *made, state, specs, parts, document.tiers, document.whole, about, kept)
        try:
            for label, spec in specs.items():
                with hollow():
                    module = build(config, spec)
                fill(module, parts[label])
        except DiastoleError as error:
            raise ModelFileError(f"{path}: {error}") from None
        return found

    def _label(self, tier: str | None, size: str | None, budget: int | str | None) -> str:
        if sum(choice is not None for choice in (tier, size, budget)) > 1:
            raise ModelFileError("a model is chosen by tier, by size or by budget; give one of them")
        if tier is not None:
            if tier not in self.tiers:
                raise ModelFileError(f"tier {tier!r} has no model; there are {_listed(self.tiers)}")
            return self.tiers[tier]
        if size is not None:
            if size not in self.specs:
                raise ModelFileError(f"size {size!r} is not here; there are {_listed(self.specs)}")
            return size
        if budget is None:
            return self.whole
        limit, bytes_of = parse_budget(budget), {label: _bytes(state) for label, state in self.parts.items()}
        able = [label for label in self.specs if bytes_of[label] <= limit]
        if not able:
            least = min(bytes_of.values())
            raise ModelFileError(f"budget {budget!r}: the smallest size has {least} bytes of parameters")
        return max(able, key=lambda label: bytes_of[label])


def load_model(
    path: Path | str, tier: str | None = None, size: str | None = None, budget: int | str | None = None
) -> nn.Module:
    """Return a model of a file that `Result.save` wrote: the global one, or a tier's, a size's, or one within a budget.

    A "custom" model is made by its factory, which this process must be allowed to import. Raises `ModelFileError`.
    """
    return ModelFile.read(Path(path)).module(tier, size, budget)


def parse_budget(budget: int | str) -> int:
    """Return the bytes in 500000, "1.5 MB" or "768 MiB". Raises `ModelFileError`."""
    found = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([kmg]i?)?b?\s*", str(budget).lower())
    if not found:
        raise ModelFileError(f"budget {budget!r} is not a size; write 500000, '1.5 MB' or '768 MiB'")
    return int(float(found[1]) * UNITS[found[2] or ""])


def _ordered(data: bytes) -> bytes:
    """Return a safetensors file whose metadata is in order: the library writes it in another order each time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[end:]))


def _part(tensors: State, label: str) -> State:
    start = f"{label}:"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(map(repr, names)) or "none"
