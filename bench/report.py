"""How a figure leaves a bench: on the screen and in a file, with the machine it was measured on.

Called by the benches at their end. It knows no figure.
"""

import json
import os
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    return {"cpus": os.cpu_count(), "load_1m": round(os.getloadavg()[0], 1)}


def publish(report: Any, path: Path | None) -> None:
    """Print the report as JSON, and write it to `path` if one was given."""
    text = json.dumps(report, indent=1)
    print(text, flush=True)
    if path is not None:
        path.write_text(text)
