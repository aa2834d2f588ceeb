"""A doctor's report on a terminal, hop by hop.

Called by the commands.
"""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.markup import escape

from knative.deploy.doctor import RULES, Report, Severity

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NEEDED: "cyan"}


def show(report: Report, console: Console) -> None:
    """Print every finding: what it is, what it must be, why, and where that is written."""
    for hop, findings in groupby(report.findings, key=lambda finding: finding.rule.hop):
        console.print(f"\n[bold]{hop}[/]")
        for finding in findings:
            fault, rule = finding.fault, finding.rule
            colour = _COLOURS[finding.severity]
            console.print(
                f"  [{colour}]{finding.severity}[/] {escape(fault.resource)}  "
                f"{escape(fault.field)}: {escape(fault.value)} -> {escape(fault.must_be)}"
            )
            console.print(f"      {escape(rule.why)} [dim]({rule.name}; {escape(rule.source)})[/]")
    counts = ", ".join(f"{len(report.of(s))} {s}" for s in Severity)
    console.print(
        f"\n{report.resource_count} resources, {len(RULES)} rules: {counts}", highlight=False
    )
