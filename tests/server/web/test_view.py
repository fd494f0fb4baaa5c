"""What the dashboard shows is a function of the events, of bounded size."""

import pytest

from diastole.server import events
from diastole.server.progress import Moving
from diastole.server.web import view as views
from diastole.server.web.shown import Query, after, cohort_page, fleet_page, summary
from diastole.server.web.source import Seen
from diastole.server.web.view import RunView


def closed(number: int, **fields: object) -> events.RoundClosed:
    scores = {"accuracy": number / 10, "loss": float("nan")}
    parts = {"updates": 1, "abandoned": "", "scores": scores, "tier_scores": {"width 1": scores}}
    return events.RoundClosed(number, **{**parts, "bytes_down": 10, "bytes_up": 4, "seconds": 2.0, **fields})


def seen(*told: events.Event) -> RunView:
    view = RunView("run")
    for at, event in enumerate(told):
        view.apply(event, float(at))
    return view


STARTED = (
    events.RunStarted("width", 3, ("a", "b", "c", "d", "e")),
    *(events.DeviceJoined(name, "small" if name > "b" else "large", 7) for name in "abcde"),
    events.RoundStarted(1, dict.fromkeys("abcde", "width 1")),
)


def test_each_device_of_a_round_ends_in_one_part() -> None:
    view = seen(
        *STARTED,
        events.UpdateAccepted(1, "a", "width 1", 7, 0.5, 1.5),
        events.UpdateQuarantined(1, "b", "not finite"),
        events.DeviceLost(1, "c", "gone"),
        events.TaskDeclined(1, "d", "memory", "too large"),
        closed(1, abandoned="stopped", warnings=("look at b",)),
    )
    parts = {name: member.part for name, member in view.cohort.items()}
    assert parts == {"a": "folded", "b": "quarantined", "c": "lost", "d": "declined", "e": "late"}
    assert (view.devices["a"].seconds, view.devices["a"].loss, view.devices["b"].quarantined) == (1.5, 0.5, 1)
    assert [(note.device, note.text, note.round) for note in view.refused] == [("b", "not finite", 1)]
    assert [note.kind for note in view.notes] == ["lost", "declined", "abandoned", "warning"]
    shown = summary(view, {}).shown
    assert shown["tiers"][0] == {"tier": "large", "parts": {"folded": 1, "quarantined": 1}, "labels": {"width 1": 2}}
    assert shown["totals"]["folded"] == shown["totals"]["late"] == 1


def test_an_update_that_was_folded_stays_so_whatever_its_device_sends_next() -> None:
    accepted = events.UpdateAccepted(1, "a", "width 1", 7, float("inf"), 1.5)
    view = seen(*STARTED, accepted, events.UpdateQuarantined(1, "a", "unknown task"), events.DeviceLost(1, "x", "gone"))
    assert view.cohort["a"].part == "folded"
    assert view.cohort["a"].loss is None
    assert "x" not in view.devices


def test_rounds_add_up_and_those_of_an_earlier_process_come_first() -> None:
    view = RunView("run")
    view.recall([closed(1), closed(2)])
    view.apply(events.RunStarted("width", 3, (), closed=2), 1.0)
    view.apply(events.RoundStarted(3, {"a": "width 1"}, kept=1), 2.0)
    view.apply(closed(3), 3.0)
    view.apply(events.RunFinished(3, stopped=True), 4.0)
    assert [(p["round"], p["down"], p["up"], p["seconds"]) for p in view.points] == [
        (1, 10, 4, 2.0),
        (2, 20, 8, 4.0),
        (3, 30, 12, 6.0),
    ]
    # JSON has no NaN.
    assert view.points[0]["scores"] == {"accuracy": 0.1, "loss": None}
    assert (view.over, view.ending) == (True, "stopped by the operator")


def test_rounds_that_are_taken_back_are_no_points_any_more() -> None:
    view = seen(*STARTED, *(closed(number) for number in (1, 2, 3)), events.RunRolledBack(1, 2))
    assert summary(view, {}).shown["closed"] == 1
    view.apply(events.RoundStarted(2, {"a": "width 1"}), 9.0)
    # It is open: what a page has of the earlier round 2 is to go.
    assert (summary(view, {}).shown["round"], summary(view, {}).shown["closed"]) == (2, 1)
    view.apply(closed(2), 10.0)
    assert [(point["round"], point["point"]) for point in view.points] == [(1, 1), (2, 4)]
    assert summary(RunView("run"), {}).shown["closed"] == 0


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST_POINTS", 8)
    monkeypatch.setattr(views, "MOST_GONE", 2)
    view = seen(*STARTED, *(closed(number) for number in range(1, 30)))
    rounds = [point["round"] for point in view.points]
    assert len(rounds) <= 9
    assert (rounds[0], rounds[-1]) == (1, 29)
    assert rounds == sorted(rounds)
    for name in "abcd":
        view.apply(events.DeviceLeft(name, "left"), 0.0)
    view.apply(events.DeviceJoined("c", "small", 1), 0.0)
    assert {name: device.online for name, device in view.devices.items()} == {"c": True, "d": False, "e": True}
    for number in range(views.MOST_REFUSED + 5):
        view.apply(events.UpdateQuarantined(1, "c", f"{number}\n"), 0.0)
    assert len(view.refused) == views.MOST_REFUSED
    # Text of devices is on one line, whatever it is.
    assert [note["text"] for note in after(view.refused, view.refused[-2].number)] == [f"{views.MOST_REFUSED + 4}?"]


def test_a_device_is_as_far_as_it_was_last_told_to_be() -> None:
    stages = (("a", "given"), ("b", "given"), ("b", "downloading"), ("c", "uploading"), ("d", "delivered"))
    moves = tuple(events.Move(device, stage, 0.0) for device, stage in stages)  # type: ignore[arg-type]
    accepted = events.UpdateAccepted(1, "d", "width 1", 7, 0.5, 1.5)
    view = seen(*STARTED, accepted, events.DevicesMoved(1, moves), events.DevicesMoved(2, moves[:1]))
    # What is told late of a device whose update counts already says nothing new.
    parts = {name: member.part for name, member in view.cohort.items()}
    assert parts == {"a": "told", "b": "downloading", "c": "uploading", "d": "folded", "e": "waiting"}
    moving = {"b": Moving(3, 9), "a": Moving(1, 2)}
    assert summary(view, moving).shown["transfers"] == [3, 9]
    page = cohort_page(view, moving, Query(state="downloading"))
    assert [(row["name"], row["done"], row["total"]) for row in page["rows"]] == [("b", 3, 9)]
    simulated = RunView("run", staged=False)
    simulated.apply(events.RoundStarted(1, {"a": "width 1"}), 0.0)
    assert simulated.cohort["a"].part == "training"


def test_a_page_has_the_rows_that_are_asked_for_and_asks_about_no_others() -> None:
    view, asked = seen(*STARTED), list[str]()

    def about(names: list[str]) -> dict[str, Seen]:
        asked.extend(names)
        return {"d": Seen(idle=4.0)}

    page = fleet_page(view, about, Query(offset=1, limit=2, tier="small", sort="-name"))
    assert page["total"] == 3
    assert [row["name"] for row in page["rows"]] == asked == ["d", "c"]
    assert [row["idle"] for row in page["rows"]] == [4.0, None]
    assert fleet_page(view, about, Query(text="e"))["total"] == 1
    assert fleet_page(view, about, Query(sort="no such column"))["rows"][0]["name"] == "a"
