"""The weights that a run starts from: `[model] initial`, and networks that a method's options name by their files.

A file is a safetensors state dict of the plain network, under the names of the user's own module, or a
`model.safetensors` that a run has left. Pickles (`.pt`, `.pth`) are never read: reading one runs its code. Devices need
no such file; they are sent parameters.
"""

import hashlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.experiments.model_file import KEY
from diastole.models.errors import StateError
from diastole.models.hollow import hollow
from diastole.models.method import Method
from diastole.models.methods.registry import parse_options
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.freeze import idle
from diastole.models.recalibrate import STATISTICS
from diastole.models.seeds import derive_seed
from diastole.models.start import held, plain_shapes
from diastole.models.state import State, check_state

GIVEN = "given:"
_GIVEN: dict[str, State] = {}


def register(weights: nn.Module | Mapping[str, Tensor]) -> Path:
    """Keep a copy of weights for this process; return what names them in `[model] initial`.

    The name has a digest of the weights. Raises `ExperimentError` for anything but a module or tensors by name.
    """
    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    if not isinstance(named, Mapping) or not all(isinstance(tensor, Tensor) for tensor in named.values()):
        raise ExperimentError("initial: expected a path, a torch module, or tensors by name as a state dict has them")
    state = {str(name): tensor.detach().cpu().clone().contiguous() for name, tensor in named.items()}
    key = GIVEN + hashlib.sha256(safetensors.torch.save(state)).hexdigest()
    _GIVEN[key] = state
    return Path(key)


def digest(experiment: Experiment) -> str:
    """Return the SHA-256 of all that a run starts from, empty if everything is drawn. Raises `ExperimentError`."""
    files = [path for path in (experiment.model.initial, *_of_method(experiment).values()) if path is not None]
    found = [str(path) if str(path) in _GIVEN else _sha256(path, _changed(path)) for path in files]
    return hashlib.sha256(" ".join(found).encode()).hexdigest() if found else ""


def begin(experiment: Experiment, model: ModelConfig, method: Method) -> State:
    """Return the global state that a run of the method starts from.

    Raises `ExperimentError` for a file that is none or does not fit, `SpecError` for a method that cannot start so.
    """
    state, wanted = method.initial(derive_seed(experiment.seed, "model")), experiment.model
    if pattern := idle(list(_paths(model)[0].values()), model.frozen) if model.frozen else None:
        raise ExperimentError(f"model.frozen: {pattern!r} matches no tensor of the model")
    if wanted.initial is not None:
        state = method.start(state, _checked(wanted.initial, model, state, wanted.fresh))
    for start, path in _of_method(experiment).items():
        state = method.start(state, _part(path, model, state, start))
    if state.keys() <= held(model, method):
        raise ExperimentError("model.frozen: every tensor is frozen, so that nothing is left to train")
    return state


def _of_method(experiment: Experiment) -> Mapping[str, Path]:
    """Return the files that the options of the experiment's method name."""
    return experiment.row.files(parse_options(experiment.method, experiment.options))


def _checked(path: Path, model: ModelConfig, state: State, fresh: tuple[str, ...]) -> State:
    """Return a file's tensors under the names of the plain network or of the global state."""
    tensors, ours = _read(path)
    shapes = plain_shapes(model)
    if ours:
        # Tensors of the method that has left the file are no business of another.
        found = {name: tensor for name, tensor in tensors.items() if name in shapes or name in state}
        if state.keys() <= found.keys() and not fresh:
            return _same(path, found, state)
        paths, known = {name: name for name in shapes}, set(tensors)
    else:
        paths, known = _paths(model)
        found = dict(tensors)
    if pattern := idle([*paths.values(), *tensors], fresh):
        raise ExperimentError(f"model.fresh: {pattern!r} matches no tensor of the model or of {path}")
    left = {name: where for name, where in paths.items() if not _any(where, fresh)}
    for name in found:
        if name not in paths.values() and name not in known and not _any(name, fresh) and not _statistic(name):
            raise ExperimentError(
                f"{path}: tensor {name[:100]!r} is none of the model's ({_some(paths.values())}); a pattern in "
                "model.fresh leaves it out"
            )
    if missing := [where for where in left.values() if where not in found]:
        raise ExperimentError(
            f"{path}: tensor {missing[0]!r} {list(shapes[_inverse(left, missing[0])])} is missing; a pattern in "
            "model.fresh lets it start anew"
        )
    given = {where: found[where] for where in left.values()}
    _same(path, given, {where: torch.empty(shapes[name], device="meta") for name, where in left.items()})
    return {name: given[where] for name, where in left.items()}


def _part(path: Path, model: ModelConfig, state: State, start: str) -> State:
    """Return a file's tensors under the names of a part of the global state, those that begin with `start`."""
    tensors, ours = _read(path)
    mine = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
    paths = {name: name for name in mine} if ours else {name: w for name, w in _paths(model)[0].items() if name in mine}
    found = {name: tensors[where] for name, where in paths.items() if where in tensors}
    for name, where in paths.items():
        if name not in found:
            raise ExperimentError(f"{path}: tensor {where!r} {list(mine[name].shape)} is missing")
    extra = [n for n in tensors if n not in paths.values() and not _statistic(n) and not ours]
    if extra:
        raise ExperimentError(f"{path}: tensor {extra[0][:100]!r} is none of this network's ({_some(paths.values())})")
    return {start + name: tensor for name, tensor in _same(path, found, mine).items()}


def _paths(model: ModelConfig) -> tuple[dict[str, str], set[str]]:
    """Return each plain tensor's name in the user's own module, and all names in that module's state dict."""
    if model.name != "custom":
        return {name: name for name in plain_shapes(model)}, set()
    paths = custom.paths(model)
    with hollow():
        known = set(custom.made(model).state_dict())
    return paths, known


def _same(path: Path, found: State, expected: Mapping[str, Tensor]) -> State:
    """Return the tensors of `found` that are expected. Raises `ExperimentError` unless they are as expected."""
    tensors = {name: found[name] for name in expected}
    try:
        check_state(tensors, expected)
    except StateError as error:
        raise ExperimentError(f"{path}: {error}") from None
    return tensors


def _read(path: Path) -> tuple[State, bool]:
    """Return the tensors of a file, and whether a run has left it."""
    if str(path) in _GIVEN:
        return _GIVEN[str(path)], False
    try:
        with path.open("rb") as file:
            pickled = file.read(2) in (b"PK", b"\x80\x02")
        if pickled:
            raise ExperimentError(
                f"{path}: a pickle, which is not read because that would run its code; save the weights by "
                "safetensors.torch.save_file(module.state_dict(), path)"
            )
        with safe_open(path, "pt") as opened:
            ours = KEY in (opened.metadata() or {})
            names = [name for name in opened.keys() if ":" not in name or not ours]  # noqa: SIM118
            return {name: opened.get_tensor(name) for name in names}, ours
    except FileNotFoundError:
        raise ExperimentError(f"{path}: no such file; a safetensors file of the model's weights is accepted") from None
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        brief = next(iter(str(error).splitlines()), "")[:200]
        raise ExperimentError(f"{path}: not a safetensors file ({brief})") from None


def _changed(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=64)
def _sha256(path: Path, changed: tuple[int, int]) -> str:
    """Return a file's digest; `changed` tells whether a digest that is remembered is still right."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _statistic(name: str) -> bool:
    """Return whether a tensor is a statistic of batch normalisation, which runs keep none of."""
    return name.rpartition(".")[2] in STATISTICS


def _inverse(paths: Mapping[str, str], where: str) -> str:
    return next(name for name, place in paths.items() if place == where)


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
