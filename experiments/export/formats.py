"""The forms in which a model runs elsewhere, and how each of them is run here to compare it."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from diastole.experiments.errors import ExportError
from diastole.models.errors import brief
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator
from diastole.proto.missing import needed

KEY = "diastole"
CLOSE = 1e-4
"""How far outputs may differ from torch's, beside the largest of them if that is above 1."""

Runner = Callable[[Tensor], Tensor]
"""Answers inputs `[n, *input_shape]` with outputs `[n, ...]`."""

Pack = Callable[[nn.Module, ModelConfig], bytes]
"""Returns a file's content, for a module of ordinary layers."""


@dataclass(frozen=True, slots=True)
class Format:
    """One form.

    Attributes:
        suffix: of its files.
        pack: returns a file's content, for a module of ordinary layers.
        run: returns what answers, from such content. It computes with one thread.
        tell: returns the content with a card in it, where there is room for one.

    """

    suffix: str
    pack: Pack
    run: Callable[[bytes], Runner]
    tell: Callable[[bytes, str], bytes]


class Ran(nn.Module):
    """A module whose answers a runner gives, for whatever takes modules."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self.runner = runner

    def forward(self, x: Tensor) -> Tensor:
        """Return the runner's outputs."""
        return self.runner(x)


def difference(module: nn.Module, runner: Runner, config: ModelConfig) -> float:
    """Return how far a runner's outputs are from a module's, on one input and on three.

    Raises `ExportError` if that is too far.
    """
    found = 0.0
    for count in (1, 3):
        x = config.drawn(count, generator("export", count))
        with torch.no_grad():
            wanted, given = module(x), runner(x)
        if given.shape != wanted.shape:
            raise ExportError(f"the exported model gives {list(given.shape)} for {count}; {list(wanted.shape)} is due")
        apart = float((given - wanted).abs().max())
        if not apart <= CLOSE * max(1.0, float(wanted.abs().max())):
            raise ExportError(f"the exported model's outputs differ from torch's by {apart:.3g}; at most {CLOSE:g} may")
        found = max(found, apart)
    return found


def need(package: str, extra: str) -> Any:
    """Return an optional package, or a module of it. Raises `ExportError` that says how to install it."""
    with needed(ExportError, "", package.partition(".")[0], f"diastole[{extra}]"):
        return import_module(package)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters' notes to developers from users, and let torch run layers as they are written.

    Its transformer layers have a fast path that no exporter knows.
    """
    before, fast = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    native: Any = getattr(torch._C, "_jit_set_onnx_log_enabled", lambda enabled: None)
    logging.disable(logging.WARNING)
    torch.backends.mha.set_fastpath_enabled(False)
    native(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        torch.backends.mha.set_fastpath_enabled(fast)


def _packed(
    form: str, attempts: Sequence[Pack], run: Callable[[bytes], Runner], module: nn.Module, config: ModelConfig
) -> bytes:
    """Return a file of the first attempt whose outputs are the module's.

    Raises `ExportError` if there is none, with what was wrong with the first.
    """
    error = ""
    for attempt in attempts:
        try:
            with quiet():
                content = attempt(module, config)
            difference(module, run(content), config)
        except Exception as caught:  # noqa: BLE001 (exporters raise anything)
            error = error or brief(caught)
        else:
            return content
    raise ExportError(f"this model cannot be exported to {form}: {error}")


def _onnx(module: nn.Module, config: ModelConfig) -> bytes:
    """Return an ONNX file that takes any number of examples, or one if the module cannot be exported otherwise."""
    need("onnx", "export")
    return _packed("ONNX", (_onnx_traced, _onnx_exported, _onnx_single), _run_onnx, module, config)


def _onnx_traced(module: nn.Module, config: ModelConfig, dynamic: bool = True) -> bytes:
    """Export by a trace: seconds faster than torch's newer exporter, and what comes out is compared anyway."""
    target, x = io.BytesIO(), config.drawn(2 if dynamic else 1, generator("export"))
    said: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "opset_version": 17, "dynamo": False}
    if dynamic:
        said["dynamic_axes"] = {"x": {0: "n"}, "y": {0: "n"}}
    torch.onnx.export(module, (x,), target, **said)  # type: ignore[arg-type]
    return target.getvalue()


def _onnx_exported(module: nn.Module, config: ModelConfig) -> bytes:
    need("onnxscript", "export")
    dynamic = ({0: torch.export.Dim("n", min=1)},)
    x = config.drawn(2, generator("export"))
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_shapes": dynamic}
    program: Any = torch.onnx.export(module, (x,), dynamo=True, verbose=False, **names)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _onnx_single(module: nn.Module, config: ModelConfig) -> bytes:
    return _onnx_traced(module, config, dynamic=False)


def _run_onnx(content: bytes) -> Runner:
    ort = need("onnxruntime", "export")
    options = ort.SessionOptions()
    # An attempt that fails is told in one line, or mended.
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]

    def some(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])

    return some if isinstance(given.shape[0], str) else one_by_one(some)


def _told_onnx(content: bytes, card: str) -> bytes:
    onnx = need("onnx", "export")
    proto = onnx.load_from_string(content)
    onnx.helper.set_model_props(proto, {KEY: card})
    told: bytes = proto.SerializeToString()
    return told


def takes_one(content: bytes) -> bool:
    """Return whether an ONNX model takes one example at a time."""
    given = need("onnx", "export").load_from_string(content).graph.input[0]
    return bool(given.type.tensor_type.shape.dim[0].dim_value)


def one_by_one(runner: Runner) -> Runner:
    """Return a runner that answers one example after another."""
    return lambda x: torch.cat([runner(x[k : k + 1]) for k in range(len(x))])


def _script(module: nn.Module, config: ModelConfig) -> bytes:
    target, x = io.BytesIO(), config.drawn(2, generator("export"))
    try:
        with quiet(), torch.no_grad():
            traced: Any = torch.jit.trace(module, (x,), check_trace=False)  # type: ignore[no-untyped-call]
            frozen = torch.jit.freeze(traced)
            torch.jit.save(frozen, target)
    except Exception as error:  # noqa: BLE001 (users' code may raise anything)
        raise ExportError(f"this model cannot be traced: {brief(error)}") from None
    return target.getvalue()


def _run_script(content: bytes) -> Runner:
    with quiet():
        loaded: Any = torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call]
    return lambda x: loaded(x)


def _told_script(content: bytes, card: str) -> bytes:
    target = io.BytesIO()
    with quiet():
        loaded: Any = torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call]
        torch.jit.save(loaded, target, _extra_files={f"{KEY}.json": card})
    return target.getvalue()


def _executorch(module: nn.Module, config: ModelConfig) -> bytes:
    """Return an ExecuTorch program for one example: by XNNPACK's kernels, or the portable ones where it has none."""
    need("executorch.exir", "executorch")
    return _packed("ExecuTorch", (_xnnpack, _portable), _run_executorch, module, config)


def _xnnpack(module: nn.Module, config: ModelConfig) -> bytes:
    xnnpack = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    return _portable(module, config, [xnnpack.XnnpackPartitioner()])


def _portable(module: nn.Module, config: ModelConfig, partitioners: Sequence[Any] = ()) -> bytes:
    exir, x = need("executorch.exir", "executorch"), config.drawn(1, generator("export"))
    with torch.no_grad():
        exported = torch.export.export(module, (x,))
        program = exir.to_edge_transform_and_lower(exported, partitioner=list(partitioners))
        return bytes(program.to_executorch().buffer)


def _run_executorch(content: bytes) -> Runner:
    runtime = need("executorch.runtime", "executorch")
    program = runtime.Runtime.get().load_program(content)
    method = program.load_method("forward")
    # The outputs lie in the program's own memory, which the next call writes over.
    return one_by_one(lambda x: method.execute([x.contiguous()])[0].clone())


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", _onnx, _run_onnx, _told_onnx),
    "executorch": Format(".pte", _executorch, _run_executorch, lambda content, card: content),
    "torchscript": Format(".pt", _script, _run_script, _told_script),
}
SAFETENSORS = "safetensors"
NAMES = (SAFETENSORS, *FORMATS)


def format_of(name: str) -> Format:
    """Return a format by its name. Raises `ExportError`."""
    if name not in FORMATS:
        raise ExportError(f"format {name!r}: accepted: {', '.join(NAMES)}")
    return FORMATS[name]
