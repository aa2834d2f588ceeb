"""`python -m knative.monitoring [FOLDER]`: writes dashboard and rules."""

import sys
from pathlib import Path

from knative.monitoring.files import files


def main(folder: Path) -> int:
    """Write them all into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (folder / name).write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/monitoring")))
