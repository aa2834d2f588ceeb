"""Fast lookup of a metric's series by its label values.

Called by code that counts for each job. It registers no metric of its own, so a process that imports it exports
only what it counts.
"""

from typing import Any, Final, TypeVar

from prometheus_client.metrics import MetricWrapperBase

Wrapper = TypeVar("Wrapper", bound=MetricWrapperBase)
_labelled: Final[dict[tuple[object, ...], Any]] = {}


def labelled(family: Wrapper, *values: object) -> Wrapper:
    """`family.labels(*values)` from a cache, without its lock and string conversions: a job counts some twenty
    times, and the lookup cost more than the counting. Entries are kept for ever, as the series are.
    """
    key = (family, *values)
    found: Wrapper | None = _labelled.get(key)
    if found is None:
        found = _labelled[key] = family.labels(*values)
    return found
