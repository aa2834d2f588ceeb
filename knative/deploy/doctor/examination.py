"""Runs every rule over a view and gives a report.

Called by `torpor doctor`, by `deploy` before it applies, and by CI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yaml import YAMLError

from knative.deploy.doctor.finding import Fault, Finding, Hop, Rule, Severity
from knative.deploy.doctor.rules import (
    api,
    broker,
    delivery,
    hold,
    kpa,
    mode,
    node,
    pod,
    provider,
    reference,
    running,
    scaler,
    security,
    serving,
    steps,
    trigger,
)
from knative.deploy.doctor.view import ResourceView
from knative.deploy.emit import Resource

RULES: tuple[Rule, ...] = tuple(
    rule
    for module in (
        api,
        hold,
        kpa,
        mode,
        broker,
        delivery,
        steps,
        scaler,
        trigger,
        pod,
        node,
        provider,
        running,
        serving,
        security,
        reference,
    )
    for rule in module.register.rules
)
_ORDER = list(Hop)
_WORST_FIRST = list(Severity)


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All findings, hop by hop, the worst of each hop first."""

    findings: tuple[Finding, ...]
    resource_count: int

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Give the findings of one severity."""
        return tuple(f for f in self.findings if f.severity is severity)

    def exit_status(self, *, is_strict: bool = False) -> int:
        """Give 1 when there are errors, or with strict any finding."""
        return int(bool(self.findings) if is_strict else bool(self.of(Severity.ERROR)))


def _asked(rule: Rule, view: ResourceView) -> list[Fault]:
    """Give a rule's faults; a resource that the rule cannot parse is a fault too."""
    try:
        return list(rule.check(view))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, YAMLError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Fault("an object", rule.name, said, "of the form that its schema gives")]


def examine(
    resources: Sequence[Resource],
    *,
    job_s: int | None = None,
    cold_start_s: int | None = None,
) -> DoctorReport:
    """Give what every rule finds; the seconds default to what the settings say."""
    view = ResourceView(resources, job_s=job_s, cold_start_s=cold_start_s)
    found = [Finding(rule, fault) for rule in RULES for fault in _asked(rule, view)]
    found.sort(key=lambda f: (_ORDER.index(f.rule.hop), _WORST_FIRST.index(f.severity)))
    return DoctorReport(tuple(found), len(view.resources))
