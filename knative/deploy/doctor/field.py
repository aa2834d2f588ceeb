"""Common rule forms: a field of each resource must meet a demand, or each resource must be readable.

Used by the rule modules. A rule about two fields at once is written as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from knative.autoscaling.setting import RefusedSettingsError
from knative.deploy.doctor.finding import Fault, Severity, fault
from knative.deploy.doctor.view import ResourceView, annotation, dig, number
from knative.deploy.emit import Resource

Check = Callable[[ResourceView], Iterable[Fault]]
Demand = Callable[[ResourceView, Any], str | None]
"""Says in words what a value must be, when it is not that; None when it is."""


@dataclass(frozen=True, slots=True)
class FieldPath:
    """The path of a value in a resource."""

    label: str
    read: Callable[[Resource], Any]


def at(path: str) -> FieldPath:
    """Give the place of a dotted path."""
    return FieldPath(path, lambda resource: dig(resource, path))


def note(key: str) -> FieldPath:
    """Give the place of an annotation."""
    return FieldPath(key, lambda resource: annotation(resource, key))


def at_least(
    least: Callable[[ResourceView], float],
    *,
    unset: float | None = None,
    off: float | None = None,
    unit: Callable[[Any], float | None] = number,
    suffix: str = "",
) -> Demand:
    """Give the demand for a number (or duration) of at least so much.

    `unset` is the platform's default for a missing value; None: it must be set. `off` is a value that switches the
    limit off. A value that is not a number does not meet the demand.
    """

    def judge(view: ResourceView, value: Any) -> str | None:
        wanted = least(view)
        found = unset if value is None else unit(value)
        if found is not None and (found >= wanted or found == off):
            return None
        words = f"at least {wanted:.0f}{suffix}"
        return words if off is None else f"{off:.0f} (off) or {words}"

    return judge


def one_of(*allowed: Any, words: str = "") -> Demand:
    """Give the demand for one of these values; None among them: it may be missing."""
    said = words or " or ".join(str(value) for value in allowed if value is not None)
    return lambda _, value: None if value in allowed else said


def field_rule(
    sort: Callable[[ResourceView], Iterable[Resource]],
    places: FieldPath | tuple[FieldPath, ...],
    demand: Demand,
    severity: Severity = Severity.ERROR,
) -> Check:
    """Give the check of one field of every resource of a kind."""
    listed = places if isinstance(places, tuple) else (places,)

    def check(view: ResourceView) -> Iterator[Fault]:
        for resource in sort(view):
            for place in listed:
                value = place.read(resource)
                if must_be := demand(view, value):
                    yield fault(resource, place.label, value, must_be, severity)

    return check


def readable_rule(
    sort: Callable[[ResourceView], Iterable[Resource]], read: Callable[[Resource], object]
) -> Check:
    """Give the check that parses each resource of a kind as the simulator does, and reports refusals."""

    def check(view: ResourceView) -> Iterator[Fault]:
        for resource in sort(view):
            try:
                read(resource)
            except RefusedSettingsError as refused:
                for refusal in refused.refusals:
                    yield fault(resource, refusal.name, refusal.value, refusal.allowed)

    return check


def kind(name: str, group: str = "") -> Callable[[ResourceView], Iterable[Resource]]:
    """Give the selector of every resource of a kind."""
    return lambda view: view.of(name, group)
