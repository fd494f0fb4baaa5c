"""Ready-made populations, and where their numbers come from.

`python -m diastole.simulations.field.presets` prints them as the table in `docs/simulations.md`. "Estimate" and "from
memory" mean what they say: nobody measured that number for this project.
"""

from dataclasses import replace

from diastole.simulations.field.availability import DAY, HOUR, Battery, Churn, DayNight
from diastole.simulations.field.populations import DeviceClass, Mixture

_PHONE = DeviceClass(
    name="phone-high",
    share=0.25,
    macs_per_second=11e9,
    memory=1.0,
    down=4.9e6,
    up=1.45e6,
    watts=5.5,
    radio_watts=1.5,
    dropout=0.06,
    straggler=0.05,
    slowdown=3.0,
    availability=DayNight(low=0.1, high=0.4),
    zones=(-8.0, -7.0, -6.0, -5.0),
    speed_spread=0.3,
    link_spread=0.7,
    source="speed (15 % of the CPU's peak, an estimate) and power (the CPU's peak): the high-end phone of Kim and Wu, "
    "AutoFL, 2021 (arXiv 2107.08147), figures from memory; link: mobile mean of October 2020, 39.2/11.6 Mbit/s "
    "(Ookla, Speedtest Global Index); drop-out of 6-10 % and a fourfold day-night swing with its peak at night: "
    "Bonawitz et al., Towards Federated Learning at Scale, 2019, from memory; all else: estimate",
)
_PHONES = (
    _PHONE,
    replace(
        _PHONE,
        name="phone-mid",
        share=0.45,
        macs_per_second=6e9,
        memory=0.6,
        down=2.5e6,
        up=0.9e6,
        watts=5.6,
        dropout=0.08,
        straggler=0.08,
        source="as phone-high, with AutoFL's mid-end phone; link: estimate, between its neighbours",
    ),
    replace(
        _PHONE,
        name="phone-low",
        share=0.3,
        macs_per_second=4e9,
        memory=0.3,
        down=1.6e6,
        up=0.75e6,
        watts=3.6,
        radio_watts=2.0,
        dropout=0.1,
        straggler=0.1,
        slowdown=4.0,
        source="as phone-high, with AutoFL's low-end phone; link: LTE medians of 13/6 Mbit/s (Huang et al., A Close "
        "Examination of Performance and Power Characteristics of 4G LTE Networks, MobiSys 2012)",
    ),
)
_PI_4 = DeviceClass(
    name="pi-4",
    share=0.45,
    macs_per_second=3e9,
    memory=0.6,
    down=4e6,
    up=4e6,
    watts=2.8,
    radio_watts=0.5,
    dropout=0.01,
    straggler=0.02,
    slowdown=2.0,
    availability=Churn(on=3 * DAY, off=2 * HOUR),
    speed_spread=0.1,
    link_spread=0.4,
    source="speed: estimate from 8 GFLOP/s of double-precision Linpack (Feiereisen, Benchmarking the Raspberry Pi 4, "
    "2022); power: 5 W with four busy cores less some 2 W idle (practical-tips.com); all else: estimate",
)
_PIS = (
    replace(
        _PI_4,
        name="pi-5",
        share=0.3,
        macs_per_second=6e9,
        memory=1.0,
        down=6e6,
        up=6e6,
        watts=5.0,
        source="speed: twice a Raspberry Pi 4 in training (Flower Labs, Raspberry Pi 5: Ready for Federated Vision, "
        "2023); all else: estimate",
    ),
    _PI_4,
    replace(
        _PI_4,
        name="pi-3",
        share=0.25,
        macs_per_second=1e9,
        memory=0.3,
        down=2e6,
        up=2e6,
        watts=2.5,
        dropout=0.02,
        straggler=0.05,
        source="estimate, from a third of a Raspberry Pi 4",
    ),
)
_WATCH = DeviceClass(
    name="watch-ble",
    share=0.4,
    macs_per_second=4e8,
    memory=0.6,
    down=1e5,
    up=6e4,
    watts=0.6,
    radio_watts=0.08,
    dropout=0.08,
    straggler=0.1,
    slowdown=3.0,
    availability=Battery(capacity=5500.0, floor=0.3, idle=0.05, charger=1.2),
    zones=_PHONE.zones,
    speed_spread=0.2,
    link_spread=0.4,
    source="battery: 400 mAh at 3.8 V, the middle of the 300-500 mAh on the market (livingwellgv.org, cnvanzone.com); "
    "radio: 10-30 mA while it sends (engineeringniche.com on Bluetooth in wearables); all else: estimate",
)
_WEARABLES = (
    replace(
        _WATCH,
        name="watch-wifi",
        share=0.3,
        macs_per_second=1e9,
        memory=1.0,
        down=1.5e6,
        up=1e6,
        watts=1.0,
        radio_watts=0.3,
        dropout=0.05,
        straggler=0.05,
        availability=Battery(capacity=6500.0, floor=0.3, idle=0.07, charger=1.5),
        source="estimate: a smart watch on Wi-Fi, 475 mAh at 3.8 V, a day between charges",
    ),
    _WATCH,
    replace(
        _WATCH,
        name="band",
        share=0.3,
        macs_per_second=5e7,
        memory=0.3,
        down=4e4,
        up=3e4,
        watts=0.1,
        radio_watts=0.05,
        dropout=0.1,
        availability=Battery(capacity=2000.0, floor=0.3, idle=0.0033, charger=0.4),
        source="estimate: a fitness band on a microcontroller, 150 mAh at 3.8 V, a week between charges",
    ),
)
_MIXED = (
    *(replace(kind, share=0.6 * kind.share) for kind in _PHONES),
    replace(_PI_4, share=0.15),
    replace(_PIS[2], share=0.1),
    replace(_WATCH, share=0.15),
)


def _limited(name: str, *resources: str, squeeze: float = 1.0) -> Mixture:
    """Return `mixed` with classes that differ in some resources only, squeezed; of the others each has the best."""
    best = {
        key: max(getattr(kind, key) for kind in _MIXED)
        for key in ("macs_per_second", "memory", "down", "up")
        if key not in resources
    }
    scarcer = f", {1 / squeeze:g} times scarcer" if squeeze < 1 else ""
    source = f"mixed, differing in {' and '.join(resources)} only{scarcer}; always online, nothing goes wrong"
    classes = []
    for kind in _MIXED:
        own = {key: getattr(kind, key) * squeeze for key in resources}
        classes.append(
            DeviceClass(name=kind.name, share=kind.share, **best, **own, watts=4.0, radio_watts=1.0, source=source)
        )
    return Mixture(name, tuple(classes))


PHONES = Mixture("phones", _PHONES)
PI = Mixture("pi", _PIS)
WEARABLES = Mixture("wearables", _WEARABLES)
MIXED = Mixture("mixed", _MIXED)
COMPUTE_LIMITED = _limited("compute-limited", "macs_per_second", squeeze=0.1)
MEMORY_LIMITED = _limited("memory-limited", "memory")
BANDWIDTH_LIMITED = _limited("bandwidth-limited", "down", "up", squeeze=0.02)
_ALL = (PHONES, PI, WEARABLES, MIXED, COMPUTE_LIMITED, MEMORY_LIMITED, BANDWIDTH_LIMITED)


def table() -> str:
    """Return every preset and the sources of its numbers as Markdown."""
    head = ("preset", "class", "share", "GMAC/s", "memory", "MB/s down/up", "W train/radio", "lost", "slow", "online")
    lines = [head, ("---",) * len(head)]
    sources = dict[str, str]()
    for population in _ALL:
        for kind in population.classes:
            name = kind.name if population.classes in (_PHONES, _PIS, _WEARABLES) else population.name
            sources.setdefault(kind.source, name)
            lines.append(
                (
                    *(population.name, kind.name, f"{kind.share:.3g}", f"{kind.macs_per_second / 1e9:g}"),
                    *(f"{kind.memory:g}", f"{kind.down / 1e6:.3g} / {kind.up / 1e6:.3g}"),
                    *(f"{kind.watts:g} / {kind.radio_watts:g}", f"{kind.dropout:.0%}"),
                    f"{kind.straggler:.0%}, {kind.slowdown:g} times" if kind.straggler else "-",
                    type(kind.availability).__name__,
                )
            )
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return rows + "\n\n" + "\n".join(f"* **{name}**: {source}." for source, name in sources.items())


if __name__ == "__main__":
    print(table())  # noqa: T201
