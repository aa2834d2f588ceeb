"""The series of a metric for given label values, looked up cheaply.

Called by whatever counts something for each job. It registers no metric of its own, so a process
that imports it shows only what it counts.
"""

from typing import Any, Final, TypeVar

from prometheus_client.metrics import MetricWrapperBase

Wrapper = TypeVar("Wrapper", bound=MetricWrapperBase)
_labelled: Final[dict[tuple[object, ...], Any]] = {}


def labelled(family: Wrapper, *values: object) -> Wrapper:
    """`family.labels(*values)`, looked up without its lock and its new strings: a job counts some
    twenty times, and asking for the series cost more than counting. Kept for ever, as the series
    themselves are.
    """
    key = (family, *values)
    found: Wrapper | None = _labelled.get(key)
    if found is None:
        found = _labelled[key] = family.labels(*values)
    return found
