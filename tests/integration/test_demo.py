"""The main job on real parts: vLLM in KServe, a real model, from zero to an answer and back to
zero.
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.stack import TORPOR

pytestmark = pytest.mark.timeout(240)


@pytest.mark.real_engine
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
    assert {"import", "weights", "warm_up"} <= set(re.findall(r"waking: (\w+)", shown.stderr))
    assert re.findall(r"replicas: (\d)", shown.stderr) == ["0", "1", "0"]
    assert re.search(r"completed \(\d+ tokens", shown.stderr)
    assert _processes_in(tmp_path) == []


def test_ctrl_c_in_the_middle_ends_it_with_one_line_and_no_process(tmp_path: Path) -> None:
    command = [TORPOR, "demo", "--engine", "seeded", "--max-tokens", "1900"]
    with subprocess.Popen(
        [*command, "--data-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TORPOR_SEEDED_TOKENS_PER_S": "20", "PYTHONUNBUFFERED": "1"},
    ) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "202 accepted" in line:
                break
        demo.send_signal(signal.SIGINT)
        _, rest = demo.communicate(timeout=120)

    assert demo.returncode == 130
    assert rest.splitlines()[-1].startswith("stopped: no process is left")
    assert "torpor:" not in rest
    assert _processes_in(tmp_path) == []


def test_a_refusal_of_the_api_ends_the_demo_with_one_line_and_no_process(tmp_path: Path) -> None:
    command = [TORPOR, "demo", "--engine", "seeded", "--max-tokens", "999999"]
    demo = subprocess.run(
        [*command, "--data-dir", str(tmp_path)], capture_output=True, text=True, timeout=120
    )

    assert demo.returncode == 1
    assert "Traceback" not in demo.stderr
    assert "torpor: body.max_tokens is 999999" in demo.stderr
    assert _processes_in(tmp_path) == []


def _processes_in(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if str(folder) in line]
