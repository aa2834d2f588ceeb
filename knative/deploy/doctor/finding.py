"""The doctor's findings: the resource, the field, its value, what it must be, and why.

Used by every rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from knative.deploy.emit import Resource

if TYPE_CHECKING:
    from knative.deploy.doctor.view import ResourceView


class Severity(StrEnum):
    """How serious a finding is."""

    ERROR = "error"  #: a job is cut off, lost or duplicated, or no pod starts for it
    WARNING = "warning"  #: works, but costs more or guarantees less than it could
    NEEDED = "needed"  #: the cluster must have it, and the examined resources do not show it


class Hop(StrEnum):
    """The place on a job's path, in order."""

    FRONT = "api"
    BROKER = "broker"
    DELIVERY = "delivery"
    ACTIVATOR = "activator"
    PREDICTOR = "predictor"
    STORE = "store"
    SCALER = "scaler"
    NODE = "node"
    SECURITY = "security"


@dataclass(frozen=True, slots=True)
class Fault:
    """The result of a rule's check: the field and what it must be; the rule adds why."""

    resource: str
    field: str
    value: str
    must_be: str
    severity: Severity = Severity.ERROR


@dataclass(frozen=True, slots=True)
class Rule:
    """A named check for one kind of mistake."""

    name: str
    hop: Hop
    why: str
    source: str
    check: Callable[[ResourceView], Iterable[Fault]]


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault with the rule that found it."""

    rule: Rule
    fault: Fault

    @property
    def severity(self) -> Severity:
        return self.fault.severity

    def as_dict(self) -> dict[str, str]:
        """Give the finding for `--json`."""
        rule, fault = self.rule, self.fault
        return {
            "severity": fault.severity,
            "hop": rule.hop,
            "rule": rule.name,
            "resource": fault.resource,
            "field": fault.field,
            "value": fault.value,
            "must_be": fault.must_be,
            "why": rule.why,
            "source": rule.source,
        }


def identity(resource: Resource) -> str:
    """Give a resource's kind and name as people write them."""
    return f"{resource.get('kind')}/{resource.get('metadata', {}).get('name')}"


def fault(
    resource: Resource,
    field: str,
    value: Any,
    must_be: str,
    severity: Severity = Severity.ERROR,
) -> Fault:
    """Give a fault of a resource; a missing value reads «not set»."""
    shown = "not set" if value is None else str(value)
    return Fault(identity(resource), field, shown, must_be, severity)


def needed(resource: str, field: str, must_be: str) -> Fault:
    """Give a demand on something that is not among the examined resources."""
    return Fault(resource, field, "not shown", must_be, Severity.NEEDED)


class Register:
    """Collects a module's rules in the order of their definition."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []

    def rule(
        self, name: str, hop: Hop, *, why: str, source: str
    ) -> Callable[
        [Callable[[ResourceView], Iterable[Fault]]], Callable[[ResourceView], Iterable[Fault]]
    ]:
        """Give a decorator that makes a check a rule."""

        def add(
            check: Callable[[ResourceView], Iterable[Fault]],
        ) -> Callable[[ResourceView], Iterable[Fault]]:
            self.rules.append(Rule(name, hop, why, source, check))
            return check

        return add
