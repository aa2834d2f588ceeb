"""A doctor's report on a terminal, hop by hop.

Called by the commands.
"""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.text import Text

from knative.deploy.doctor import RULES, DoctorReport, Severity

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NEEDED: "cyan"}


def show(report: DoctorReport, console: Console) -> None:
    """Print every finding: what it is, what it must be, why, and where that is written."""
    for hop, findings in groupby(report.findings, key=lambda finding: finding.rule.hop):
        console.print(f"\n{hop}", style="bold", markup=False)
        for finding in findings:
            fault, rule = finding.fault, finding.rule
            colour = _COLOURS[finding.severity]
            what = f" {fault.resource}  {fault.field}: {fault.value} -> {fault.must_be}"
            console.print(Text.assemble("  ", (str(finding.severity), colour), what))
            where = (f"({rule.name}; {rule.source})", "dim")
            console.print(Text.assemble(f"      {rule.why} ", where))
    counts = ", ".join(f"{len(report.of(s))} {s}" for s in Severity)
    console.print(
        f"\n{report.resource_count} resources, {len(RULES)} rules: {counts}", highlight=False
    )
