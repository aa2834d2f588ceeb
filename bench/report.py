"""How figures leave a bench: on the screen and in a file, with the machine they were measured on.

Called by the benches at their end. It knows no bench.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    return {"cpus": os.cpu_count(), "load_1m": round(os.getloadavg()[0], 1)}


def quantile(values: Iterable[float], share: float) -> float:
    """The value that so large a share of them stays under; 0 of none."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * share))]) if ordered else 0.0


def publish(report: Any, path: Path | None) -> None:
    """Print the report as JSON, and write it to `path` if one was given."""
    text = json.dumps(report, indent=1)
    print(text, flush=True)
    if path is not None:
        path.write_text(text)
