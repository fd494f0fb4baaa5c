"""Draws docs/architecture.svg: the houses and their arrows, and one round. Run: python docs/architecture_picture.py."""

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, GREY, PAPER = "#1a1a1a", "#666666", "#ffffff"
BLUE, GREEN, ORANGE = "#d6e6f4", "#d9efe3", "#fbe3cf"
SEAM = "#b3470b"

HOUSES = {
    "cli": (0.4, 8.2, 2.5, "one command,\na file a sub-command", PAPER),
    "api": (3.1, 8.2, 2.5, "what you get by\nimport diastole", PAPER),
    "simulations": (0.4, 6.3, 5.2, "simulated devices: populations, virtual clock, engines", GREEN),
    "experiments": (0.4, 4.4, 5.2, "what a run is: experiment, data, run, result, report", PAPER),
    "server": (0.4, 2.5, 2.5, "the coordinator:\nround, planner, services", BLUE),
    "client": (3.1, 2.5, 2.5, "the device agent:\ntraining, connection", ORANGE),
    "models": (0.4, 0.6, 2.5, "networks, methods,\nexact aggregation", PAPER),
    "proto": (3.1, 0.6, 2.5, "the wire contract,\nits words, codecs", PAPER),
}
ARROWS = (
    *(("cli", "simulations"), ("api", "simulations"), ("simulations", "experiments")),
    *(("experiments", "server"), ("experiments", "client")),
    *(("server", "models"), ("server", "proto"), ("client", "models"), ("client", "proto")),
)
# Height on the page, words, and the seam that stands there.
BEFORE = (
    (8.35, "1  plan", "who takes part, and with which size", "Sampler"),
    (7.3, "2  compress", "each distinct sub-model once", ""),
)
AFTER = (
    (4.55, "5  admit", "check each update, or quarantine it", ""),
    (3.5, "6  weigh, dilate, fold", "into sums in global coordinates", "Processors"),
    (2.45, "7  close and step", "with a quorum, the mean moves the model", "Processors"),
    (1.4, "8  learn and prepare", "on the proxy set; the next round's own work", ""),
    (0.35, "9  evaluate, keep, tell", "test set, snapshot, observers", ""),
)


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    """Draw a box with its lower left corner at (x, y)."""
    style = "round,pad=0,rounding_size=0.09"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=INK, linewidth=0.9)
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, colour: str = GREY) -> None:
    """Draw an arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.1))


def houses(axes: Axes) -> None:
    """Draw the folders, each above those that it imports."""
    axes.text(0.4, 9.75, "Who imports whom", fontsize=13, weight="bold", color=INK)
    for name, (x, y, width, words, colour) in HOUSES.items():
        box(axes, x, y, width, 1.1, colour)
        axes.text(x + width / 2, y + 0.8, f"{name}/", ha="center", va="center", fontsize=11, weight="bold", color=INK)
        axes.text(x + width / 2, y + 0.36, words, ha="center", va="center", fontsize=8.3, color=INK, linespacing=1.15)
    arrow(axes, (2.9, 1.15), (3.1, 1.15))
    for upper, lower in ARROWS:
        (a, above, a_width, *_), (b, below, b_width, *_) = HOUSES[upper], HOUSES[lower]
        middle, other = a + a_width / 2, b + b_width / 2
        # A wide house has an arrow straight above or below each of its narrow neighbours.
        start, end = (other if a_width > b_width else middle), (middle if b_width > a_width else other)
        arrow(axes, (start, above), (end, below + 1.1))


def one_round(axes: Axes) -> None:
    """Draw what the coordinator and a device do in a round, and the link between them."""
    left, width, link, device = 7.0, 4.2, 12.55, 14.6
    axes.text(left, 9.75, "One round", fontsize=13, weight="bold", color=INK)
    box(axes, left - 0.25, 0.1, width + 0.5, 9.45, BLUE)
    axes.text(left, 9.22, "coordinator", fontsize=10, style="italic", color=INK)
    for y, title, words, seam in (*BEFORE, *AFTER):
        box(axes, left, y, width, 0.8, PAPER)
        axes.text(left + 0.15, y + 0.54, title, va="center", fontsize=10, weight="bold", color=INK)
        axes.text(left + 0.15, y + 0.22, words, va="center", fontsize=8.3, color=INK)
        if seam:
            axes.text(
                left + width - 0.12, y + 0.54, seam, ha="right", va="center", fontsize=9.5, weight="bold", color=SEAM
            )
    heights = [y for y, *_ in (*BEFORE, *AFTER)]
    for upper, lower in pairwise(heights):
        if (upper, lower) != (BEFORE[-1][0], AFTER[0][0]):
            arrow(axes, (left + width / 2, upper), (left + width / 2, lower + 0.8))
    waiting = "devices train; updates are taken\nas they come, in any order"
    axes.text(left + width / 2, 6.3, waiting, ha="center", va="center", fontsize=9, style="italic", color=GREY)
    box(axes, link - 0.75, 0.1, 1.5, 9.45, "#eeeeee")
    axes.text(link, 9.22, "link", ha="center", fontsize=10, style="italic", color=INK)
    axes.text(link, 8.3, "Codec", ha="center", fontsize=9.5, weight="bold", color=SEAM)
    axes.text(
        link,
        2.5,
        "gRPC\n\nor simulated:\nloop\nprocesses\nbatched\nauto\n\nor Flower",
        ha="center",
        va="center",
        fontsize=9,
    )
    box(axes, device - 0.25, 4.2, 3.0, 4.4, ORANGE)
    axes.text(device, 8.25, "device", fontsize=10, style="italic", color=INK)
    for y, title, words in (
        (6.75, "3  receive", "task, sub-model"),
        (4.55, "4  train", "on its own examples"),
    ):
        box(axes, device, y, 2.5, 1.1, PAPER)
        axes.text(device + 0.15, y + 0.74, title, va="center", fontsize=10, weight="bold", color=INK)
        axes.text(device + 0.15, y + 0.34, words, va="center", fontsize=8.3, color=INK)
    arrow(axes, (device + 1.25, 6.75), (device + 1.25, 5.65))
    arrow(axes, (left + width, 7.6), (device, 7.3), colour=INK)
    axes.text(link, 7.62, "tasks", ha="center", fontsize=9, color=INK)
    arrow(axes, (device, 5.1), (left + width, 4.95), colour=INK)
    axes.text(link, 5.2, "updates", ha="center", fontsize=9, color=INK)


def main() -> None:
    """Write the picture beside this file."""
    mpl.rcParams["svg.hashsalt"] = "diastole"
    figure = Figure(figsize=(13.4, 7.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 17.7), ylim=(-0.1, 10.2))
    axes.axis("off")
    houses(axes)
    one_round(axes)
    figure.savefig(Path(__file__).with_suffix("").with_name("architecture.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
