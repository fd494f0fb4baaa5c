"""Pictures as files: their kinds, and labels at the ends of lines, which need no legend."""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from diastole.experiments.errors import ExperimentError
from diastole.proto.files import write_bytes
from diastole.proto.missing import missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("png", "pdf", "svg")
# What is not the same in two runs of one program, and how type is kept: as type, which journals ask for.
METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
SETTINGS: dict[Any, Any] = {"svg.hashsalt": "diastole", "pdf.fonttype": 42, "svg.fonttype": "path"}
SIZE, LINE = 9.0, 1.25
"""Points of a label's type, and heights of it from one label to the next."""

NO_PICTURES = missing("", "matplotlib", "diastole[simulation]")


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def check_drawing() -> None:
    """Raise `ExperimentError` if matplotlib is not installed."""
    if not can_draw():
        raise ExperimentError(NO_PICTURES)


def kinds_of(text: str) -> tuple[str, ...]:
    """Return the kinds in a text such as "png,pdf". Raises `ExperimentError`."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    check_kinds(found)
    return found


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise `ExperimentError` for what is no kind of picture."""
    for kind in kinds:
        if kind not in KINDS:
            raise ExperimentError(f"figures: {kind!r} is not drawn; accepted: {', '.join(KINDS)}")


def write_figures(folder: Path, figures: Mapping[str, "Figure | None"], kinds: Sequence[str]) -> list[Path]:
    """Write pictures by name, each in every kind, and return the paths; what an earlier run left of them is removed."""
    paths = []
    for name, figure in figures.items():
        for kind in KINDS:
            path = folder / f"{name}.{kind}"
            if figure is not None and kind in kinds:
                write_bytes(path, rendered(figure, kind))
                paths.append(path)
            else:
                path.unlink(missing_ok=True)
    return paths


def shown(figure: "Figure") -> "Figure":
    """Return a picture that a notebook shows, whether or not it was told how to show matplotlib's."""
    vars(figure)["_repr_png_"] = partial(rendered, figure, dpi=72)
    return figure


def rendered(figure: "Figure", kind: str = "png", dpi: int = 120) -> bytes:
    """Return a picture as a file of a kind; the same picture gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(SETTINGS):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=METADATA.get(kind))
    return buffer.getvalue()


def label_ends(axes: "Axes", height: float) -> bool:
    """Write each line's label to the right of the axes, level with the line's end and in its colour.

    Labels that would cover each other are moved apart, and a dotted line leads from each line's end to its label. Call
    this when limits and scales stand. `height` is that of the axes, in inches. Returns False, and writes nothing, if
    there is no room for all labels.
    """
    handles, labels = axes.get_legend_handles_labels()
    lines = cast("list[Any]", handles)
    step = LINE * SIZE / 72 / height
    if not labels or len(labels) * step > 1:
        return False
    # Asked for, limits are brought up to date.
    axes.get_xlim(), axes.get_ylim()
    to_axes = axes.transAxes.inverted()
    ends = []
    for handle, label in zip(lines, labels, strict=True):
        x, y = (float(values[-1]) for values in handle.get_data())
        place = to_axes.transform(handle.get_transform().transform((x, y)))
        ends.append((float(place[1]), float(place[0]), label, handle.get_color()))
    ends.sort(key=lambda end: end[0])
    for (y, x, label, colour), at in zip(ends, apart([end[0] for end in ends], step), strict=True):
        look: dict[str, Any] = {"color": colour, "linewidth": 0.8, "linestyle": ":", "alpha": 0.8, "clip_on": False}
        axes.plot([x, 1.03], [y, at], transform=axes.transAxes, **look)
        axes.text(1.035, at, label, transform=axes.transAxes, color=colour, fontsize=SIZE, va="center")
    return True


def apart(wanted: Sequence[float], step: float) -> list[float]:
    """Return places in [0, 1], as near to the wanted ones, sorted, as they can be while `step` lies between any two.

    They are the least squares under these bounds, by pooling neighbours that would collide.
    """
    pools = list[tuple[float, int]]()
    for number, place in enumerate(wanted):
        # Less the room of those below, the places only have to be in order.
        pools.append((min(max(place, step / 2), 1 - step / 2) - number * step, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    free = [place for place, count in pools for _ in range(count)]
    most = 1 - step / 2 - (len(wanted) - 1) * step
    return [min(max(place, step / 2), most) + number * step for number, place in enumerate(free)]
