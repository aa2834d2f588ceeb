"""A steps process without tools starts as before: what calls need is imported at the first call."""

import subprocess
import sys


def test_the_process_imports_no_client_of_tools_at_its_start() -> None:
    heavy = ("mcp", "mcp_types", "httpx2", "httpcore2")
    program = f"import sys, steps.server; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
