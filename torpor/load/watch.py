"""Reads the servers' `/metrics` during a run: replicas, queue, memory and cost.

Called by `torpor load`, `torpor top` and the benches. Needs only the addresses of api, broker and (on one machine)
activator. A figure that cannot be read is left out.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT: Final = aiohttp.ClientTimeout(total=5, connect=2)
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """Every sample of one process at one moment, by name and labels."""

    values: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of the series of `name` that have `labels`; None when there is none."""
        wanted = set(labels.items())
        found = [v for key, v in self.values.get(name, {}).items() if wanted <= key]
        return sum(found) if found else None

    def highest(self, name: str, **labels: str) -> float | None:
        """The highest of these series."""
        wanted = set(labels.items())
        return max(
            (v for key, v in self.values.get(name, {}).items() if wanted <= key), default=None
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums of `name` by the values of one label."""
        sums: dict[str, float] = {}
        for key, value in self.values.get(name, {}).items():
            sums[dict(key).get(label, "")] = sums.get(dict(key).get(label, ""), 0.0) + value
        return sums


def parse(text: str) -> Scrape:
    """A `/metrics` page without the buckets of histograms. Raises ValueError for an invalid one.

    Most of a page is buckets and comments, and parsing it all takes tens of milliseconds, in which the load
    generator could not send.
    """
    wanted = [line for line in text.splitlines() if line[:1] != "#" and "_bucket{" not in line]
    values: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families("\n".join(wanted) + "\n"):
        for sample in family.samples:
            values.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return Scrape(values)


async def scrape(session: aiohttp.ClientSession, address: str) -> Scrape:
    """The samples at `address` now; empty when it does not answer."""
    if not address:
        return Scrape()
    try:
        async with session.get(f"{address}/metrics", timeout=_TIMEOUT) as answer:
            return parse(await answer.text()) if answer.status == 200 else Scrape()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return Scrape()


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """The servers' figures at one moment; None for a missing one."""

    at_s: float
    ready: float | None
    depth: float | None
    oldest_s: float | None
    in_flight: float | None
    gpu_s: float | None
    busy_s: float | None
    charged_s: float | None
    cost: float | None
    gpu_utilisation: float | None
    keys: float | None
    store_bytes: float | None
    memory_bytes: Mapping[str, float]
    open_files: Mapping[str, float]


class Watch:
    """Reads every few seconds until cancelled."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        addresses: Mapping[str, str],
        *,
        now: Callable[[], float],
        every_s: float = 2.0,
        gpu_metrics: str = "",
    ) -> None:
        self._session = session
        self._addresses = addresses
        self._gpu_metrics = gpu_metrics
        self._now = now
        self._every_s = every_s
        self.looks: list[MetricsSnapshot] = []

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def look(self) -> MetricsSnapshot:
        """Read once, and keep it."""
        names = list(self._addresses)
        scrapes = await asyncio.gather(
            *(scrape(self._session, self._addresses[name]) for name in names),
            scrape(self._session, self._gpu_metrics),
        )
        seen = look_of(self._now(), dict(zip(names, scrapes, strict=False)), scrapes[-1])
        self.looks.append(seen)
        return seen


def look_of(at_s: float, by_part: Mapping[str, Scrape], gpu: Scrape) -> MetricsSnapshot:
    """The figures of all parts together."""
    api, broker = by_part.get("api", Scrape()), by_part.get("broker", Scrape())
    memory = {name: s.total("process_resident_memory_bytes") for name, s in by_part.items()}
    files = {name: s.total("process_open_fds") for name, s in by_part.items()}
    return MetricsSnapshot(
        at_s=at_s,
        ready=api.total("torpor_replicas_ready"),
        depth=broker.total("torpor_queue_depth"),
        oldest_s=broker.highest("torpor_queue_oldest_age_seconds"),
        in_flight=broker.total("torpor_jobs_in_flight"),
        gpu_s=api.total("torpor_gpu_seconds_total"),
        busy_s=api.total("torpor_gpu_seconds_total", state="busy"),
        charged_s=api.total("torpor_gpu_work_seconds_total"),
        cost=api.total("torpor_gpu_cost_total"),
        gpu_utilisation=gpu.highest("DCGM_FI_DEV_GPU_UTIL"),
        keys=api.total("torpor_store_keys"),
        store_bytes=api.total("torpor_store_memory_bytes"),
        memory_bytes={name: value for name, value in memory.items() if value is not None},
        open_files={name: value for name, value in files.items() if value is not None},
    )


def is_accounted(first: MetricsSnapshot, last: MetricsSnapshot, jobs: int) -> bool:
    """Whether the GPU-seconds of `jobs` that ended since `first` are included in `last`.

    An attempt is charged to its job when it ends, but a predictor posts its own seconds only every few seconds:
    until then, the busy seconds are fewer than the charged ones. True when the servers have no such figures; false
    for good when a predictor died before it posted.
    """
    if first.busy_s is None or first.charged_s is None:
        return True
    if last.busy_s is None or last.charged_s is None:
        return False
    busy_s, charged_s = last.busy_s - first.busy_s, last.charged_s - first.charged_s
    rounded_s = 0.01 * charged_s + 0.001 * jobs  # each charge is in whole milliseconds
    return busy_s + rounded_s >= charged_s and (busy_s > 0 or not jobs)
