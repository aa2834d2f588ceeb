"""Checks every hop of a job's path for settings that would cut off, lose or duplicate a job.

`examine` runs the rules of every module in `rules/`, each of which covers one hop or one platform. Pure: resources
in (a rendered folder or a live cluster's), findings out.
"""

from knative.deploy.doctor.examination import RULES, DoctorReport, examine
from knative.deploy.doctor.finding import Finding, Hop, Severity

__all__ = ["RULES", "DoctorReport", "Finding", "Hop", "Severity", "examine"]
