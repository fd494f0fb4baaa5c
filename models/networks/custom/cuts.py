"""Where to cut a user's module, so that the blocks that the user names become those of its stages.

torch.fx runs `forward` of the modules that contain a block, with symbols in place of tensors, and records which layers
and operators they call; every other module is one step of the record. Here the record is cut at the blocks. They must
run one after another, and no path from the input to the output may lead past a block. What runs between two blocks
belongs to the later block, and is left out with it.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from diastole.models.errors import ModelError

Blocks = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive steps of a recorded forward pass.

    Attributes:
        run: takes a module, which holds what the steps use, and a tensor; returns a tensor.
        uses: paths in the user's module of the layers and constants that the steps use.

    """

    run: Callable[[nn.Module, Tensor], Tensor]
    uses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a module is cut.

    Attributes:
        entry: what runs before the first block; None if nothing does.
        stages: for each block of each stage, what runs between the block before and this one, and this one's path.
        behind: what runs after the last block and before the classifier.
        classifier: path of the linear layer that gives the logits as the last step; empty if another step does.

    """

    entry: Piece | None
    stages: tuple[tuple[tuple[Piece | None, str], ...], ...]
    behind: Piece | None
    classifier: str


def cuts_of(module: nn.Module, blocks: Blocks) -> Cuts:
    """Return where to cut a module so that the blocks of its stages are `blocks`, given by their paths.

    Raises `ModelError` naming the block, layer or operator that prevents it.
    """
    paths = [path for stage in blocks for path in stage]
    _check_paths(module, paths)
    graph, other = _record(module.eval(), paths), _record(module.train(), paths)
    for step, twin in zip_longest(graph.nodes, other.nodes):
        if step is None or twin is None or step.format_node() != twin.format_node():
            raise ModelError(
                f"stages: forward does something else in training, at {_name(step or twin)}; only blocks and layers "
                "that contain none may, so use nn.Dropout instead of functional.dropout there"
            )
    record = _Record(module, list(graph.nodes))
    start, calls, end = record.steps[0], [record.call(path) for path in paths], record.steps[-1]
    for (path, call), (later, following) in pairwise(zip(paths, calls, strict=True)):
        if record.place[following] < record.place[call]:
            raise ModelError(f"stages: block {later!r} runs before {path!r}; name blocks in the order they run in")
    ends = [*calls, end]
    pieces = [
        record.piece(source, target.args[0], target) for source, target in zip([start, *calls], ends, strict=True)
    ]
    leads = iter([None, *pieces[1:-1]])
    behind, classifier = record.without_classifier(calls[-1], end)
    return Cuts(pieces[0], tuple(tuple((next(leads), path) for path in stage) for stage in blocks), behind, classifier)


class _Record:
    """The steps of a module's forward pass in order: first the examples, last what is returned."""

    def __init__(self, module: nn.Module, steps: list[fx.Node]) -> None:
        self.module, self.steps = module, steps
        self.place = {step: number for number, step in enumerate(steps)}

    def call(self, path: str) -> fx.Node:
        """Return the step that calls a block with one tensor. Raises `ModelError`."""
        found = [step for step in self.steps if step.op == "call_module" and step.target == path]
        if len(found) != 1:
            times = f"{len(found)} times" if found else "nowhere"
            raise ModelError(f"stages: block {path!r} is called {times} in forward; expected once, as a module")
        (call,) = found
        given = [*call.args, *call.kwargs.values()]
        if len(given) != 1 or call.kwargs or not isinstance(given[0], fx.Node):
            raise ModelError(f"stages: block {path!r} is called with {len(given)} arguments; expected one tensor alone")
        return call

    def piece(self, source: fx.Node, target: Any, reader: fx.Node) -> Piece | None:
        """Return the steps from the output of `source` to `target`, which `reader` reads; None if they are the same.

        Raises `ModelError` if these steps read anything else.
        """
        if not isinstance(target, fx.Node):
            raise ModelError(f"stages: forward returns a {type(target).__name__}; expected one tensor")
        if target is source:
            return None
        wanted, todo = set[fx.Node](), [(target, reader)]
        while todo:
            step, user = todo.pop()
            if step is source or step in wanted:
                continue
            if step.op != "get_attr" and self.place[step] <= self.place[source]:
                raise ModelError(
                    f"stages: {_name(user)} reads {_name(step)} past {_name(source)}; what runs behind a block may "
                    "only read what the block gives, so let the block itself add or join the rest"
                )
            wanted.add(step)
            todo += [(each, step) for each in step.all_input_nodes]
        return self._compiled(source, [step for step in self.steps if step in wanted], target)

    def without_classifier(self, source: fx.Node, end: fx.Node) -> tuple[Piece | None, str]:
        """Return the steps after `source` without a linear layer that is the last of them, and that layer's path."""
        last = cast(fx.Node, end.args[0])
        linear = last.op == "call_module" and isinstance(at(self.module, str(last.target)), nn.Linear)
        once = sum(step.op == "call_module" and step.target == last.target for step in self.steps) == 1
        if last is source or not linear or not once or len(last.all_input_nodes) != 1:
            return self.piece(source, last, end), ""
        return self.piece(source, last.all_input_nodes[0], last), str(last.target)

    def _compiled(self, source: fx.Node, steps: Sequence[fx.Node], target: fx.Node) -> Piece:
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        copies[source] = graph.placeholder("x")
        for step in steps:
            copies[step] = graph.node_copy(step, copies.__getitem__)
        graph.output(copies[target])
        uses = sorted({str(step.target) for step in steps if step.op in ("call_module", "get_attr")})
        made = fx.GraphModule({path: at(self.module, path) for path in uses}, graph)
        return Piece(type(made).forward, tuple(uses))


class _Alone(nn.Module):
    """A module that is called with the examples and nothing else, so that its other arguments have their defaults."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class _Tracer(fx.Tracer):
    """Looks only into modules that contain a block."""

    def __init__(self, blocks: Sequence[str]) -> None:
        super().__init__()
        self.blocks = [f"module.{path}" for path in blocks]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(path.startswith(f"{module_qualified_name}.") for path in self.blocks)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look into torch's own encoder, whose `forward` decides by the values of its masks, if it is given none."""
        if isinstance(m, nn.TransformerEncoder) and len(args) == 1 and not kwargs:
            forward = partial(_encoded, m)
        return super().call_module(m, forward, args, kwargs)


def _encoded(encoder: nn.TransformerEncoder, x: Any) -> Any:
    for layer in encoder.layers:
        x = layer(x)
    return x if encoder.norm is None else encoder.norm(x)


@contextmanager
def _counted(module: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Let `len` be understood where a module contains a block; torch.fx knows sizes alone."""
    owners = [module, *(module.get_submodule(path.rpartition(".")[0]) for path in blocks)]
    found = {id(names): names for each in owners if (names := getattr(type(each).forward, "__globals__", None))}
    patched = [names for names in found.values() if "len" not in names]
    for names in patched:
        names["len"] = lambda x: x.size(0) if isinstance(x, fx.Proxy) else len(x)
    try:
        yield
    finally:
        for names in patched:
            del names["len"]


def _record(module: nn.Module, blocks: Sequence[str]) -> fx.Graph:
    """Return the record of a module's forward pass, under the module's own paths. Raises `ModelError`."""
    tracer = _Tracer(blocks)
    try:
        with _counted(module, blocks):
            graph = tracer.trace(_Alone(module))
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        path, kind = next(reversed(tracer.module_stack.values()), ("", type(module)))
        where = f"module {path.removeprefix('module.')!r}" if "." in path else "the module itself"
        raise ModelError(
            f"stages: forward of {where} ({getattr(kind, '__name__', kind)}) cannot be followed, {_line(error)}: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)[:200]}; move what it does there into a block, "
            "or into a layer of its own"
        ) from None
    for step in graph.nodes:
        if step.op in ("call_module", "get_attr"):
            inside = str(step.target).removeprefix("module.")
            if inside == step.target:
                raise ModelError(
                    "stages: forward makes a tensor of its own outside the blocks; keep it as a plain attribute of the "
                    "module, or make it in a layer"
                )
            step.target = inside
    return graph


def _check_paths(module: nn.Module, paths: Sequence[str]) -> None:
    """Raise `ModelError` for a path that names no module, comes twice, or is inside another."""
    for path in paths:
        try:
            module.get_submodule(path)
        except AttributeError:
            known = ", ".join(name for name, _ in module.named_modules() if name)[:300]
            raise ModelError(f"stages: there is no module {path!r}; there are {known}") from None
        if paths.count(path) > 1:
            raise ModelError(f"stages: block {path!r} is named {paths.count(path)} times")
        for other in paths:
            if other.startswith(f"{path}."):
                raise ModelError(f"stages: block {other!r} is inside block {path!r}; name one of them")


def at(module: nn.Module, path: str) -> Any:
    """Return what a path names: a layer, or a constant of one."""
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _name(step: fx.Node) -> str:
    if step.op == "call_module":
        return f"{str(step.target)!r}"
    if step.op == "call_method":
        return f"operator .{step.target}()"
    if step.op == "call_function":
        return f"operator {getattr(step.target, '__name__', step.target)}"
    return {"placeholder": "the examples", "output": "what forward returns"}.get(step.op, f"{step.target}")


def _line(error: Exception) -> str:
    """Return the last line of the user's own code that an error came through."""
    others = (str(Path(torch.__file__).parent), __file__)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f"line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else "in torch"
