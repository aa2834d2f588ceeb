"""Metric families whose values are read from the store at scrape time instead of being counted in the process.

Called by the broker's and the api's metrics. A value that could not be read is left out: a gap in a graph is
correct, a zero would not be. Must not know the figures' meaning.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from eventing.errors import Unavailable

STORE_UP: Final = Gauge(
    "torpor_store_up", "1 while the store answers, as this process last saw it; 0 otherwise."
)

DEAD_LETTERS: Final = Counter(
    "torpor_dead_letters_total",
    "Dead letters, by trigger: jobs are counted by the api when they end, other events by the "
    "broker.",
    ["trigger"],
)
"""Defined here because api and broker both count it, and one process may run both."""


@dataclass(frozen=True, slots=True)
class Family:
    """Name, help and labels of one family; a counter's name ends in `_total`."""

    name: str
    meaning: str
    labels: tuple[str, ...]

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")


Samples = Mapping[Family, Sequence[tuple[tuple[str, ...], float]]]
"""Label values and value of each series of each family."""
Series = defaultdict[Family, list[tuple[tuple[str, ...], float]]]
"""`Samples` under construction: `found[FAMILY].append((labels, value))`."""


class Latest(Collector):
    """Exports the samples of its last update. One a module, registered once a process."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = tuple(families)
        self._samples: Samples = {}
        REGISTRY.register(self)

    async def refresh(self, read: Callable[[], Awaitable[Samples]]) -> bool:
        """Export what `read` finds in the store; nothing, and False, when the store is unavailable."""
        try:
            self._samples = await read()
        except Unavailable:
            self._samples = {}
            STORE_UP.set(0)
            return False
        STORE_UP.set(1)
        return True

    def describe(self) -> Iterable[Metric]:
        return [_empty(family) for family in self._families]

    def collect(self) -> Iterable[Metric]:
        for family in self._families:
            metric = _empty(family)
            for labels, value in self._samples.get(family, ()):
                metric.add_metric(list(labels), value)
            yield metric


def _empty(family: Family) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if family.is_counter else GaugeMetricFamily
    return kind(family.name, family.meaning, labels=list(family.labels))
