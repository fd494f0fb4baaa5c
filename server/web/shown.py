"""What goes to the page, as JSON: the summary of a run, and pages of its lists."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diastole.models.metrics import title
from diastole.server.events import finite
from diastole.server.progress import Moving, Part
from diastole.server.web.source import Seen
from diastole.server.web.view import Device, Member, Note, RunView

LONGEST_PAGE = 200
"""Rows of one answer."""
MOVING = (Part.DOWNLOADING, Part.UPLOADING)
MOST_LABELS = 12
"""Sub-models of a tier that are named."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What is shown of a run above all, and the transfers under way, by device."""

    shown: Mapping[str, Any]
    moving: Mapping[str, Moving]


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows of a list: `limit` of them from `offset` on, in the order of `sort`, "-" before it for the reverse."""

    offset: int = 0
    limit: int = 50
    sort: str = "name"
    tier: str = ""
    state: str = ""
    text: str = ""


def summary(view: RunView, moving: Mapping[str, Moving]) -> Summary:
    """Return the summary of a run."""
    nobody = Device()
    counts = Counter((view.devices.get(name, nobody).tier, each.part, each.spec) for name, each in view.cohort.items())
    parts, tiers, labels = Counter[str](), dict[str, Counter[str]](), dict[str, Counter[str]]()
    for (tier, part, spec), number in counts.items():
        parts[part] += number
        tiers.setdefault(tier, Counter())[part] += number
        labels.setdefault(tier, Counter())[spec] += number
    fleet = Counter((device.tier, device.online) for device in view.devices.values())
    under_way = [moved for name, moved in moving.items() if name in view.cohort and view.cohort[name].part in MOVING]
    shown = {
        "id": view.run_id,
        "method": view.method,
        "metric": view.metric,
        "metric_title": title(view.metric),
        "rounds": view.rounds,
        "round": view.round,
        "closed": view.points[-1]["round"] if view.points else 0,
        "open": view.open,
        "opened": view.opened,
        "began": view.began,
        "over": view.over,
        "ending": view.ending,
        "awaited": view.awaited,
        "parts": dict(parts),
        "tiers": [
            {"tier": tier, "parts": dict(tiers[tier]), "labels": dict(labels[tier].most_common(MOST_LABELS))}
            for tier in sorted(tiers)
        ],
        "fleet": [
            {"tier": tier, "online": fleet[tier, True], "known": fleet[tier, True] + fleet[tier, False]}
            for tier in sorted({tier for tier, _ in fleet})
        ],
        "transfers": [sum(each.done for each in under_way), sum(each.total for each in under_way)],
        "timed": view.timed,
        "totals": view.totals,
    }
    return Summary(finite(shown), moving)


def after(notes: Iterable[Note], number: int) -> list[dict[str, Any]]:
    """Return the lines of a log behind a number."""
    return [asdict(note) for note in notes if note.number > number]


def cohort_page(view: RunView, moving: Mapping[str, Moving], query: Query) -> dict[str, Any]:
    """Return a page of the open round's devices, or of the last one's."""
    rows = ((name, member, view.devices.get(name) or Device(), member.part) for name, member in view.cohort.items())
    keys: dict[str, Callable[[tuple[str, Member, Device, str]], Any]] = {
        "name": lambda row: row[0],
        "tier": lambda row: (row[2].tier, row[0]),
        "spec": lambda row: (row[1].spec, row[0]),
        "state": lambda row: (row[3], row[0]),
        "seconds": lambda row: (row[1].seconds, row[0]),
        "loss": lambda row: (row[1].loss or 0.0, row[0]),
    }
    found = [row for row in rows if _fits(query, row[0], row[2].tier, row[3])]
    shown = []
    for name, member, device, part in _page(found, keys, query):
        at = moving.get(name) if part in MOVING else None
        shown.append(
            {
                "name": name,
                "tier": device.tier,
                "spec": member.spec,
                "state": part,
                "done": at.done if at else 0,
                "total": at.total if at else 0,
                "seconds": member.seconds,
                "loss": member.loss,
                "why": member.why,
            }
        )
    return {"total": len(found), "offset": query.offset, "rows": finite(shown)}


def fleet_page(view: RunView, seen: Callable[[Sequence[str]], Mapping[str, Seen]], query: Query) -> dict[str, Any]:
    """Return a page of the run's devices; `seen` is asked about those on the page alone."""
    rows = ((name, device, "online" if device.online else "gone") for name, device in view.devices.items())
    keys: dict[str, Callable[[tuple[str, Device, str]], Any]] = {
        "name": lambda row: row[0],
        "tier": lambda row: (row[1].tier, row[0]),
        "state": lambda row: (row[2], row[0]),
        "examples": lambda row: (row[1].examples, row[0]),
        "accepted": lambda row: (row[1].accepted, row[0]),
        "quarantined": lambda row: (row[1].quarantined, row[0]),
        "seconds": lambda row: (row[1].seconds, row[0]),
        "loss": lambda row: (row[1].loss or 0.0, row[0]),
    }
    found = [row for row in rows if _fits(query, row[0], row[1].tier, row[2])]
    page = _page(found, keys, query)
    known = seen([name for name, _, _ in page])
    shown = [
        {"name": name, "state": state, **asdict(device), **asdict(known.get(name) or Seen())}
        for name, device, state in page
    ]
    return {"total": len(found), "offset": query.offset, "rows": finite(shown)}


def _fits(query: Query, name: str, tier: str, state: str) -> bool:
    return (
        (not query.tier or tier == query.tier)
        and (not query.state or state == query.state)
        and (not query.text or query.text in name)
    )


def _page(found: list[Any], keys: Mapping[str, Callable[[Any], Any]], query: Query) -> list[Any]:
    column = query.sort.removeprefix("-")
    found.sort(key=keys.get(column, keys["name"]), reverse=query.sort.startswith("-"))
    return found[query.offset : query.offset + min(query.limit, LONGEST_PAGE)]
