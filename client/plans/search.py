"""Finding the plan that is fastest on this device, of those that are right.

Convolutions are chosen one by one, in a process of their own (`client/plans/choose.py`). What depends on everything
at once is then measured on steps of the whole module: memory format, precision, threads.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from diastole.client.apart import can_fork
from diastole.client.kernels import dense, winograd
from diastole.client.plans.cache import CPUINFO
from diastole.client.plans.choose import Choice, choose
from diastole.client.plans.plan import Layer, Plan, Precision
from diastole.client.plans.prober import PATIENCE, tried
from diastole.client.plans.trace import Trace
from diastole.client.plans.trial import Trial
from diastole.models.allocator import keep_pages
from diastole.models.native import library
from diastole.models.native.build import HALF
from diastole.models.training import Examples, TrainConfig

WORTH_MACS = 500_000
"""Of the convolutions of a step, forward. A smaller one spends its time in calls: its convolutions are PyTorch's, and
whole steps alone are timed."""

SECONDS = 1.2
"""That the convolutions of one precision may take to be measured."""

MARGIN = 0.97
THREADS_MARGIN = 0.85
"""More threads must take at most this share of the time: another program may want them."""

SLOWER = 10
"""Times as long as the reference that a step may take in a process of its own."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))


@dataclass(slots=True)
class Search:
    """What a search found, and why.

    Attributes:
        plan: the fastest one that is right.
        steps: seconds of a step under each plan that was tried, channels first first.
        choices: how convolutions were chosen.
        seconds: that the search took, without `building`.
        building: seconds that compiling native kernels took, once for all searches on this machine.

    """

    plan: Plan
    steps: dict[str, float] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    seconds: float = 0.0
    building: float = 0.0


def search(module: nn.Module, batch: Examples, training: TrainConfig, threads: int = 1) -> Search:
    """Return the fastest plan of at most `threads` threads for steps of `module` on `batch`; neither changes."""
    began = time.perf_counter()
    keep_pages()
    found = Search(Plan(pages=True))
    trial = Trial(module, batch, training)
    try:
        trace = trial.trace()
    except Exception:  # noqa: BLE001 (training will say what is wrong)
        return found
    on_cpu = trial.place.type == "cpu"
    if on_cpu:
        start = time.perf_counter()
        library.prepare(_parts(trace))
        found.building = time.perf_counter() - start
    plans = [found.plan, *_fast(trace, found, on_cpu)]
    plans = [found.plan, *_right(trial, plans[1:], on_cpu)]
    _measure(trial, plans, found, time.thread_time if on_cpu else time.perf_counter, MARGIN)
    if trace.dense and on_cpu and found.plan.precision == "fp32" and training.batch_size <= dense.MOST:
        plans = [found.plan, *_right(trial, [replace(found.plan, dense=True)], on_cpu)]
        _measure(trial, plans, found, time.thread_time, MARGIN)
    if threads > 1 and on_cpu and trace.macs >= WORTH_MACS:
        plans = [found.plan, replace(found.plan, threads=threads)]
        _measure(trial, plans, found, time.perf_counter, THREADS_MARGIN)
    found.seconds = time.perf_counter() - began - found.building
    return found


def _measure(trial: Trial, plans: Sequence[Plan], found: Search, clock: Callable[[], float], margin: float) -> None:
    if len(plans) < 2:
        return
    taken = trial.seconds(plans, clock)
    found.steps.update(zip(map(str, plans), taken, strict=True))
    fastest = min(range(len(plans)), key=taken.__getitem__)
    if taken[fastest] < margin * taken[0]:
        found.plan = plans[fastest]


def _right(trial: Trial, plans: Sequence[Plan], on_cpu: bool) -> list[Plan]:
    """Return the plans under which a step is right; it is taken in a process of its own first, which it may end."""
    if not on_cpu or not can_fork():
        return [plan for plan in plans if trial.right(plan)]
    patience = PATIENCE + SLOWER * trial.step_seconds
    told = tried(lambda plan: {"right": float(trial.right(plan))}, plans, patience * len(plans), patience)
    # A process that lived may have been unable to differentiate: torch refuses it to a fork where there is a GPU.
    return [plan for plan, said in zip(plans, told, strict=True) if said and (said["right"] or trial.right(plan))]


def _parts(trace: Trace) -> list[str]:
    """Return which native kernels will be tried, so that they are compiled side by side, and before there is a fork."""
    shapes = [use.shape for use in trace.uses] if trace.macs >= WORTH_MACS else []
    depthwise = any(shape.depthwise for shape in shapes)
    asked = {"groupnorm": trace.norms, "normpool": trace.norms and trace.pools, "pooling": trace.pools}
    asked["depthwise"] = depthwise
    halves = [*asked.items(), ("gelu", bool(trace.fused))] if has_bf16() else []
    asked["dense"] = trace.dense
    asked["winograd"] = any(winograd.meant_for(shape) for shape in shapes)
    asked["window"] = any(not shape.depthwise and not winograd.meant_for(shape) for shape in shapes)
    return [part for part, needed in asked.items() if needed] + [part + HALF for part, needed in halves if needed]


def _fast(trace: Trace, found: Search, on_cpu: bool) -> list[Plan]:
    """Return what may be faster than what is there."""
    plans = [replace(found.plan, pools=True)] if trace.pools and on_cpu else []
    plain = Plan(True, pages=True, pools=trace.pools and on_cpu, norms=trace.norms and on_cpu)
    if on_cpu and not trace.safe:
        return plans
    if trace.macs < WORTH_MACS:
        return [*plans, plain] if on_cpu and (plain.norms or plain.pools) else plans
    if not on_cpu:
        return [plain, replace(plain, precision="bf16")]
    for precision, dtype in DTYPES.items():
        if precision == "bf16" and not has_bf16():
            continue
        alone = [use for use in trace.uses if precision == "bf16" or use.path not in trace.fused]
        choices = choose(alone, dtype, SECONDS)
        if choices is not None:
            found.choices += choices
            layers = tuple(choice.layer for choice in choices if choice.layer != Layer(choice.layer.path))
            plans.append(replace(plain, precision=precision, layers=layers))
    return plans


def has_bf16() -> bool:
    """Return whether this processor multiplies in bfloat16; one that does not is ten times slower in it."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    return any(BF16_FLAGS & set(line.split()) for line in lines if line.startswith(("flags", "Features")))


def why(search: Search) -> list[str]:
    """Return, in lines for a person, what was measured and chosen; alike convolutions share a line."""
    lines = [f"{1e3 * seconds:.2f} ms a step: {name}" for name, seconds in search.steps.items()]
    alike: dict[str, list[str]] = {}
    for choice in search.choices:
        for direction, times in choice.times.items():
            timed = [name for name in sorted(times, key=times.__getitem__) if times[name] < float("inf")]
            ranked = ", ".join(f"{name} {1e3 * times[name]:.2f}" for name in timed)
            said = f"{direction}: {getattr(choice.layer, direction)}" + (f" ({ranked} ms)" if timed else "")
            alike.setdefault(said, []).append(choice.layer.path)
    for said, paths in alike.items():
        others = f" and {len(paths) - 1} like it" if paths[1:] else ""
        lines.append(f"{paths[0]}{others}, {said}")
    return lines
