"""`python -m knative.monitoring [FOLDER]`: writes dashboard and rules."""

import json
import sys
from pathlib import Path
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


def main(folder: Path) -> int:
    """Write them all into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (folder / name).write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/monitoring")))
