"""What is written down of operators, and of strangers."""

from diastole.server.security.audit import HOUR, STRANGERS, Audit
from diastole.server.store.memory import MemoryStore


def test_strangers_do_not_push_operators_out_of_the_audit() -> None:
    now = 0.0
    audit = Audit("place", MemoryStore(), lambda: now)
    audit("operator:one", "Stop", "now=True", "done")
    for _ in range(3 * STRANGERS):
        audit("ipv4:192.0.2.1:9", "Stop", "", "no token", stranger=True)
    audit("operator:one", "Stop", "", "done")
    assert [line.who for line in audit.last(1000)].count("ipv4:192.0.2.1:9") == STRANGERS
    now = HOUR
    audit("ipv4:192.0.2.1:9", "Stop", "", "no token", stranger=True)
    assert [line.outcome for line in audit.last(3)] == [
        "no token",
        f"{2 * STRANGERS} more calls of strangers were refused",
        "done",
    ]


def test_what_strangers_say_is_one_short_line() -> None:
    audit = Audit("place", MemoryStore())
    audit("x" * 1000, "Stop", "a\nb\x1b" * 1000, "refused", stranger=True)
    (line,) = audit.last(1)
    assert max(len(line.who), len(line.detail)) <= 300
    assert line.detail.isprintable()
