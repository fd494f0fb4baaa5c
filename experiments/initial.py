"""The weights that a run starts from: `[model] initial`, and networks that a method's options name by their files.

A file is a safetensors state dict of the plain network, under the names of the user's own module, or a
`model.safetensors` that a run has left. Pickles (`.pt`, `.pth`) are never read: reading one runs its code. Devices need
no such file; they are sent parameters.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diastole.client.model_file import KEY
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.models.errors import StateError
from diastole.models.method import Method
from diastole.models.methods.registry import parse_options
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.freeze import idle, matches
from diastole.models.recalibrate import STATISTICS
from diastole.models.seeds import derive_seed
from diastole.models.start import held, paths, plain_shapes
from diastole.models.state import State, check_state

LEAVE = "; a pattern in model.fresh leaves it out"
ANEW = "; a pattern in model.fresh lets it start anew"
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
    if pattern := idle(list(paths(model).values()), model.frozen) if model.frozen else None:
        raise ExperimentError(f"model.frozen: {pattern!r} matches no tensor of the model")
    if wanted.initial is not None:
        state = method.start(state, _whole(wanted.initial, model, state, wanted.fresh))
    for start, path in _of_method(experiment).items():
        state = method.start(state, _part(path, model, state, start))
    if state.keys() <= held(model, method):
        raise ExperimentError("model.frozen: every tensor is frozen, so that nothing is left to train")
    return state


def _of_method(experiment: Experiment) -> Mapping[str, Path]:
    """Return the files that the options of the experiment's method name."""
    return experiment.row.files(parse_options(experiment.method, experiment.options))


def _whole(path: Path, model: ModelConfig, state: State, fresh: Sequence[str]) -> State:
    """Return a file's tensors under the names of the plain network or, if a run has left it, of the global state."""
    tensors, ours = _read(path)
    like = all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in state.items())
    if ours and like and not fresh:
        return _taken(path, tensors, {name: name for name in state}, state)
    names = {name: name for name in plain_shapes(model)} if ours else paths(model)
    if pattern := idle([*names.values(), *tensors], fresh):
        raise ExperimentError(f"model.fresh: {pattern!r} matches no tensor of the model or of {_shown(path)}")
    if not ours:
        known = {*names.values(), *_others(path, tensors, model)}
        _check_known(path, [name for name in tensors if not matches(name, fresh)], known, LEAVE)
    wanted = {name: where for name, where in names.items() if not matches(where, fresh)}
    expected = {name: torch.empty(plain_shapes(model)[name], device="meta") for name in wanted}
    return _taken(path, tensors, wanted, expected, ANEW)


def _part(path: Path, model: ModelConfig, state: State, start: str) -> State:
    """Return a file's tensors under the names of a part of the global state, those that begin with `start`."""
    tensors, ours = _read(path)
    mine = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
    names = {name: name for name in mine}
    if not ours:
        names = {name: where for name, where in paths(model).items() if name in mine}
        _check_known(path, tensors, {*names.values(), *_others(path, tensors, model)})
    return {start + name: tensor for name, tensor in _taken(path, tensors, names, mine).items()}


def _check_known(path: Path, found: Iterable[str], known: Collection[str], hint: str = "") -> None:
    """Raise `ExperimentError` for a tensor that is none of the network's; statistics of norms are known, and unused."""
    for name in found:
        if name not in known and name.rpartition(".")[2] not in STATISTICS:
            raise ExperimentError(
                f"{_shown(path)}: tensor {name[:100]!r} is none of the network's ({_some(known)}){hint}"
            )


def _taken(
    path: Path, tensors: State, names: Mapping[str, str], expected: Mapping[str, Tensor], hint: str = ""
) -> State:
    """Return tensors of a file under other names. Raises `ExperimentError` unless they are as expected.

    Args:
        path: of the file.
        tensors: in it.
        names: for each of ours, that in the file.
        expected: tensors of the same shapes and dtypes, by our names.
        hint: what may be done about a tensor that is missing.

    """
    for name, where in names.items():
        if where not in tensors:
            shape = list(expected[name].shape)
            raise ExperimentError(f"{_shown(path)}: tensor {where!r} {shape} is missing{hint}")
    try:
        check_state({where: tensors[where] for where in names.values()}, {w: expected[n] for n, w in names.items()})
    except StateError as error:
        raise ExperimentError(f"{_shown(path)}: {error}") from None
    return {name: tensors[where] for name, where in names.items()}


def _others(path: Path, tensors: State, model: ModelConfig) -> set[str]:
    """Return what else is in the state dict of a user's own module: buffers, and other names of shared parameters.

    Raises `ExperimentError` if a buffer is another in the file: every process makes its own.
    """
    if model.name != "custom":
        return set()
    with torch.random.fork_rng(devices=[]):
        module = custom.made(model)
    for name, buffer in module.named_buffers():
        if name in tensors and not torch.equal(tensors[name], buffer):
            raise ExperimentError(
                f"{_shown(path)}: tensor {name!r} is a constant, and the network has other values of it"
            )
    return {*module.state_dict(), *dict(module.named_buffers())}


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


def _shown(path: Path) -> str:
    return "initial" if str(path) in _GIVEN else str(path)


def _some(names: Iterable[str], most: int = 4) -> str:
    names = sorted(names)
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
