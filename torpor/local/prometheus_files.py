"""Files by which Prometheus and Grafana monitor a local stack (`torpor up --metrics`).

Called by the stack at each start. Ports can change then, so the targets are in a file of their own, which a running
Prometheus reads again; the configuration is written once and belongs to the user from then on.
"""

import json
from pathlib import Path
from typing import Final

import yaml

from knative.monitoring.files import RULES, files
from torpor.local.data_dir import Addresses

CONFIG: Final = "prometheus.yml"
_TARGETS: Final = "targets.json"


def write_prometheus_files(folder: Path, at: Addresses) -> None:
    """Write targets, alert rules, dashboard and, where there is none, the configuration into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": [RULES],
        "scrape_configs": [{"job_name": "torpor", "file_sd_configs": [{"files": [_TARGETS]}]}],
    }
    parts = {"api": at.api, "broker": at.broker, "activator": at.activator}
    targets = [
        {"targets": [url.removeprefix("http://")], "labels": {"job": f"torpor-{name}"}}
        for name, url in parts.items()
    ]
    written = files() | {_TARGETS: json.dumps(targets)}
    if not (folder / CONFIG).exists():
        written[CONFIG] = yaml.safe_dump(config, sort_keys=False)
    for name, content in written.items():
        new = folder / f".{name}"
        new.write_text(content, encoding="utf-8")
        new.replace(folder / name)  # a running Prometheus reads it whole or not at all
