"""Sets up the virtual environment of a checkout.

Called by `make install` with any Python from 3.11 on; uses nothing but the standard library. A
second run with nothing changed is not made at all (`make` sees to it). The steps are those of
`torpor setup cpu` (torpor/local/install.py).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (the user's Python, not the project's)
        version = sys.version.split()[0]
        return _fail(f"Python 3.11 or newer is needed; this is {version}: make PYTHON=python3.12")
    from torpor.local.install import run, run_command, steps

    venv = Path(sys.argv[1])
    make_venv = (
        "virtual environment",
        lambda: run_command([sys.executable, "-m", "venv", str(venv)]),
    )
    todo = steps("cpu", str(venv / "bin" / "python"), ["-e", f"{ROOT}[cpu,dev]"])
    if problem := run(todo, before=[make_venv]):
        return _fail(f"{problem}\n`make clean` and `make install` start over.")
    return 0


def _fail(why: str) -> int:
    sys.stderr.write(f"\ninstall: {why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
