"""The main job on real parts: vLLM in KServe, a real model, from zero to an answer and back to
zero.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.stack import TORPOR

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(240)]


def test_one_real_job_goes_from_zero_to_an_answer_and_back_to_zero(tmp_path: Path) -> None:
    shown = subprocess.run(
        [TORPOR, "demo", "--prompt", "What is the capital of France?", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )

    assert shown.returncode == 0, shown.stderr
    assert "Paris" in shown.stdout
    assert "202 accepted" in shown.stderr
    assert "a predictor is waking" in shown.stderr
    assert re.findall(r"replicas: (\d)", shown.stderr) == ["0", "1", "0"]
    assert re.search(r"completed \(\d+ tokens", shown.stderr)
    assert _processes_in(tmp_path) == []


def _processes_in(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if str(folder) in line]
