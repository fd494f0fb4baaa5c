"""Early exits as one ONNX graph: what runs behind an exit is the other branch of a condition."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diastole.experiments.errors import ExportError
from diastole.experiments.export.formats import need, quiet
from diastole.experiments.export.source import Known
from diastole.models.errors import brief
from diastole.models.export.cascade import Cascade, calibrated, leaving, section_macs, sections_of, shares
from diastole.models.export.plain import plain
from diastole.models.networks.config import ModelConfig

OPSET = 17


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A network with thresholds.

    Attributes:
        module: the network.
        shares: of the calibrating examples, by the exit by which they leave.
        macs: mean multiply-accumulates of one of these examples.
        examples: how many calibrated.

    """

    module: Cascade
    shares: list[float]
    macs: float
    examples: int

    @property
    def note(self) -> str:
        """What the card says."""
        levels = ", ".join("never" if t > 1 else f"{t:.4g}" for t in self.module.thresholds)
        parts = ", ".join(f"{share:.0%}" for share in self.shares)
        return (
            f"Leaves by the first exit whose largest probability reaches its threshold ({levels}); of the "
            f"{self.examples} examples that calibrated them these shares leave by each exit: {parts}; "
            f"{self.macs:.4g} multiply-accumulates in the mean."
        )


def calibrate(module: nn.Module, known: Known, config: ModelConfig, points: float) -> Calibrated:
    """Return a trained network with exits whose thresholds cost at most `points` of accuracy, in hundredths.

    They are calibrated on the examples that models are chosen by, of which no model has learned. Raises `ModelError`
    for a network without exits, and `ExportError` without labels.
    """
    sections = [plain(section) for section in sections_of(module)]
    examples = known.choose
    if not len(examples) or examples.y.ndim != 1 or examples.y.is_floating_point() or int(examples.y.min()) < 0:
        raise ExportError("thresholds of exits are calibrated on examples with labels; --data FILE.npz names some")
    macs = section_macs(sections, config.blank(1), config.classes)  # type: ignore[arg-type]
    with torch.no_grad():
        answers = Cascade(sections, (), config.classes).answers(examples.x)  # type: ignore[arg-type]
    thresholds = calibrated(answers, examples.y, macs, points / 100)
    made = Cascade(sections, thresholds, config.classes).eval()  # type: ignore[arg-type]
    exits = leaving(answers, thresholds)
    mean = float(torch.tensor(macs, dtype=torch.float64)[exits].mean())
    return Calibrated(made, shares(exits, len(sections)), mean, len(examples))


def conditional(cascade: Cascade, config: ModelConfig) -> bytes:
    """Return an ONNX model that takes one example and works out no more than it needs. Raises `ExportError`."""
    onnx = need("onnx", "export")
    try:
        with quiet(), torch.no_grad():
            graphs = _sections(cascade, config)
    except Exception as error:  # noqa: BLE001 (exporters raise anything)
        raise ExportError(f"this model cannot be exported to ONNX: {brief(error)}") from None
    made, float32 = onnx.helper, onnx.TensorProto.FLOAT
    kind = onnx.TensorProto.INT64 if config.tokens else float32
    zeros = made.make_tensor("total0", float32, [1, config.classes], [0.0] * config.classes)
    output = made.make_tensor_value_info("y", float32, [1, config.classes])
    nodes, tensors = _branch(onnx, graphs, cascade.thresholds, 0, output)
    given = made.make_tensor_value_info("x", kind, [1, *config.input_shape])
    graph = made.make_graph(nodes, "cascade", [given], [output], [zeros, *tensors])
    model = made.make_model(graph, opset_imports=[made.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _sections(cascade: Cascade, config: ModelConfig) -> list[Any]:
    """Return the graph of each section; its values are named after it, and after what the section before gives."""
    onnx, found = need("onnx", "export"), list[Any]()
    h, total = config.blank(1), torch.zeros(1, config.classes)
    for number, section in enumerate(cascade.sections):
        target = io.BytesIO()
        before = ["x" if number == 0 else f"h{number}", f"total{number}"]
        after = [f"h{number + 1}", f"total{number + 1}", f"answer{number}"]
        said: dict[str, Any] = {"input_names": before, "output_names": after, "opset_version": OPSET, "dynamo": False}
        torch.onnx.export(section, (h, total), target, **said)  # type: ignore[arg-type]
        graph = onnx.load_from_string(target.getvalue()).graph
        found.append(_renamed(graph, f"section{number}/", {*before, *after}))
        h, total, _ = section(h, total)
    return found


def _renamed(graph: Any, prefix: str, kept: set[str]) -> Any:
    """Return a graph, in place, whose values have a prefix, but for those that are kept."""

    def name(old: str) -> str:
        return old if not old or old in kept else prefix + old

    for tensor in graph.initializer:
        tensor.name = name(tensor.name)
    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [name(each) for each in node.input]
        node.output[:] = [name(each) for each in node.output]
    return graph


def _branch(onnx: Any, graphs: Sequence[Any], thresholds: Sequence[float], at: int, output: Any) -> tuple[Any, Any]:
    """Return the nodes and constants from one section on; the outputs of the last of them are the answer."""
    make, graph = onnx.helper, graphs[at]
    nodes, tensors = list(graph.node), list(graph.initializer)
    answer, result = f"answer{at}", output.name
    if at == len(graphs) - 1:
        return [*nodes, make.make_node("Identity", [answer], [result])], tensors
    wanted = make.make_tensor(f"threshold{at}", onnx.TensorProto.FLOAT, [], [thresholds[at]])
    likely, sure, enough = f"likely{at}", f"sure{at}", f"enough{at}"
    inner = make.make_tensor_value_info(f"y{at}", onnx.TensorProto.FLOAT, None)
    other, constants = _branch(onnx, graphs, thresholds, at + 1, make.make_tensor_value_info(f"z{at}", 1, None))
    leave = make.make_graph([make.make_node("Identity", [answer], [inner.name])], f"leave{at}", [], [inner])
    go_on = make.make_graph(other, f"on{at}", [], [make.make_tensor_value_info(f"z{at}", 1, None)], constants)
    return [
        *nodes,
        make.make_node("Softmax", [answer], [likely], axis=1),
        make.make_node("ReduceMax", [likely], [sure], keepdims=0),
        make.make_node("GreaterOrEqual", [sure, wanted.name], [enough]),
        make.make_node("If", [enough], [result], then_branch=leave, else_branch=go_on),
    ], [*tensors, wanted]
