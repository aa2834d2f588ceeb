"""The files of the monitoring: a Grafana dashboard and Prometheus rules. Pure.

Called by `python -m knative.monitoring` and by `torpor up --metrics`.
"""

import json
from typing import Final

import yaml

from knative.monitoring.dashboard import dashboard
from knative.monitoring.rule import Objective, rules

DASHBOARD: Final = "torpor-dashboard.json"
RULES: Final = "torpor-rules.yaml"
_HEAD: Final = "# Written by `python -m knative.monitoring`: change the code, not this file.\n"


def files() -> dict[str, str]:
    """Name and content of each file."""
    return {
        DASHBOARD: json.dumps(dashboard(), indent=2) + "\n",
        RULES: _HEAD + yaml.safe_dump(rules(Objective()), sort_keys=False, width=100),
    }
