"""Detects growth of memory, open files and keys over a soak run. Pure.

Called by `summary` and `torpor load --soak`. Two effects look like a leak and are none. Caches, pools and an
allocator's arenas fill up once, so the first half of a run does not count. Connections come and go with the load,
so the trend is computed from the lowest value in each interval: a leak raises it for good.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torpor.load.watch import MetricsSnapshot

_SOAK_S: Final = 1200
"""Half of it is left to judge by; a shorter run gives no result."""
_SHARE_A_HOUR: Final = 0.1
_FILES_A_HOUR: Final = 10.0
"""Ten an hour is 240 a day, a quarter of the usual limit."""
_KEYS_A_JOB: Final = 2
_OTHER_KEYS: Final = 100
_STRETCHES: Final = 12
_SURE: Final = 2.0
"""A trend counts when it is so many times its own standard error."""
Points = Sequence[tuple[float, float]]
"""Seconds from the start, and a value."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A least-squares line, per hour, and its standard error."""

    per_hour: float
    error_per_hour: float

    @property
    def is_sure(self) -> bool:
        return abs(self.per_hour) > _SURE * self.error_per_hour


def trend(points: Points) -> Trend | None:
    """The trend of the lowest values in the second half of a run; None with too few points."""
    if not points:
        return None
    begin_s, end_s = (points[0][0] + points[-1][0]) / 2, points[-1][0]
    floor = _floor([point for point in points if point[0] >= begin_s], begin_s, end_s)
    if len(floor) < 4:
        return None
    mean_x = sum(x for x, _ in floor) / len(floor)
    mean_y = sum(y for _, y in floor) / len(floor)
    spread = sum((x - mean_x) ** 2 for x, _ in floor)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in floor) / spread
    missed = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in floor)
    return Trend(3600 * slope, 3600 * (missed / (len(floor) - 2) / spread) ** 0.5)


def _floor(points: Points, begin_s: float, end_s: float) -> Points:
    """The lowest value in each interval, placed at its middle."""
    width_s = max((end_s - begin_s) / _STRETCHES, 1e-9)
    least: dict[int, float] = {}
    for at_s, value in points:
        stretch = min(int((at_s - begin_s) / width_s), _STRETCHES - 1)
        least[stretch] = min(value, least.get(stretch, value))
    return [(begin_s + (stretch + 0.5) * width_s, least[stretch]) for stretch in sorted(least)]


def growth(looks: Iterable[MetricsSnapshot]) -> dict[str, Any]:
    """How memory, open files and keys changed: first, last, highest, and the trend an hour."""
    series: dict[str, list[tuple[float, float]]] = {}
    for look in looks:
        for part, value in look.memory_bytes.items():
            series.setdefault(f"{part} memory_bytes", []).append((look.at_s, value))
        for part, value in look.open_files.items():
            series.setdefault(f"{part} open_files", []).append((look.at_s, value))
        for name, amount in (("store keys", look.keys), ("store bytes", look.store_bytes)):
            if amount is not None:
                series.setdefault(name, []).append((look.at_s, amount))
    return {name: _figures(points) for name, points in sorted(series.items())}


def _figures(points: Points) -> dict[str, Any]:
    found = trend(points)
    return {
        "first": points[0][1],
        "last": points[-1][1],
        "highest": max(value for _, value in points),
        "per_hour": None if found is None else round(found.per_hour, 2),
        "is_sure": found is not None and found.is_sure,
    }


def growing(report: Mapping[str, Any]) -> list[str]:
    """The reasons to fail a soak run: a significant trend of memory or open files that would matter within a day,
    or more keys than the kept jobs explain (a record and a token stream each). A run of less than twenty minutes
    gives no result.
    """
    if report["span_s"] < _SOAK_S:
        return [f"unknown: {report['span_s']:g} s are too short to decide"]
    found: list[str] = []
    for name, figures in report["growth"].items():
        if name == "store bytes":
            continue  # follows the keys, and the lengths of what was asked
        if name == "store keys":
            added = figures["last"] - figures["first"]
            if added > _KEYS_A_JOB * report["sent"] + _OTHER_KEYS:
                found.append(f"{name}: {added:.0f} more, for {report['sent']} jobs")
            continue
        is_memory = name.endswith("memory_bytes")
        allowed = _SHARE_A_HOUR * figures["first"] if is_memory else _FILES_A_HOUR
        if figures["is_sure"] and figures["per_hour"] > allowed:
            found.append(f"{name}: {figures['per_hour']:.0f} an hour")
    return found
