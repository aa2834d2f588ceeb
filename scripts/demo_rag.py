"""`make demo-rag`: a stack from zero that is asked about this repository's own docs, and cites them.

Starts `torpor up` in a folder of its own, runs `examples/ask_files.py` against it, and stops it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUESTION = "What happens to a running job when its predictor dies?"
_START_S = 300


def main() -> int:
    """The exit status of the example."""
    flags = sys.argv[1:]
    torpor = str(Path(sys.executable).parent / "torpor")
    with tempfile.TemporaryDirectory(prefix="torpor-rag-") as folder:
        data = Path(folder) / "data"
        command = [torpor, "up", "--port", "0", "--broker-port", "0", "--data-dir", str(data)]
        stack = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL)
        try:
            address = _address(stack, data / "addresses.json")
            example = [
                sys.executable,
                str(ROOT / "examples/ask_files.py"),
                str(ROOT / "docs"),
                QUESTION,
            ]
            return subprocess.run(
                example, env=os.environ | {"OPENAI_BASE_URL": f"{address}/v1"}, check=False
            ).returncode
        finally:
            stack.send_signal(signal.SIGTERM)
            stack.wait(60)


def _address(stack: "subprocess.Popen[bytes]", path: Path) -> str:
    """Where the api listens, once the stack has started."""
    give_up_s = time.monotonic() + _START_S
    while not path.exists():
        if stack.poll() is not None or time.monotonic() > give_up_s:
            raise SystemExit("the stack does not start")
        time.sleep(0.2)
    return str(json.loads(path.read_text())["api"])


if __name__ == "__main__":
    sys.exit(main())
