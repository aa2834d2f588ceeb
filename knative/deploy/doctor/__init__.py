"""Walks every hop of a job's path and names what would cut, lose or double it.

`examine` is the way in: it runs the rules of every module here, each of which holds those of one
hop or one platform. Pure: resources in (a rendered folder or a live cluster's), findings out.
"""

from knative.deploy.doctor.examination import RULES, DoctorReport, examine
from knative.deploy.doctor.finding import Finding, Hop, Severity

__all__ = ["RULES", "DoctorReport", "Finding", "Hop", "Severity", "examine"]
