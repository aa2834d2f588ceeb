"""The examples do what they say, on a real stack."""

import base64
import csv
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from tests.integration.stack import LocalStack

pytestmark = pytest.mark.timeout(180)
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    made = LocalStack(tmp_path_factory.mktemp("stack"), "--window", "60s").start()
    yield made
    made.stop()


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "submit_and_wait.py"],
        [sys.executable, "openai_client.py"],
        ["sh", "submit_and_wait.sh"],
        ["node", "stream.mjs"],
        ["java", "SubmitAndWait.java"],
        ["go", "run", "submit_and_wait.go"],
    ],
    ids=lambda command: command[-1],
)
def test_an_example_prints_the_whole_answer(stack: LocalStack, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")

    shown = subprocess.run(
        command,
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"TORPOR_API_URL": stack.addresses["api"]},
    )

    assert shown.returncode == 0, shown.stderr
    newest = httpx.get(f"{stack.addresses['api']}/v1/jobs", params={"limit": "1"}).json()["data"][0]
    choice = stack.job(newest["id"], include="result")["result"]["choices"][0]
    assert shown.stdout.strip() == choice["message"]["content"].strip() != ""


def test_the_usage_of_days_is_printed_and_written(stack: LocalStack, tmp_path: Path) -> None:
    job_id = stack.submit("hi")
    stack.job(job_id, wait_s=60)
    table = tmp_path / "usage.csv"

    def printed() -> str:
        shown = subprocess.run(
            [sys.executable, "usage_by_day.py", table],
            cwd=EXAMPLES,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"TORPOR_API_URL": stack.addresses["api"]},
        )
        assert shown.returncode == 0, shown.stderr
        return shown.stdout

    deadline = time.monotonic() + 30
    while not (said := printed()) and time.monotonic() < deadline:
        time.sleep(0.1)

    assert " in, " in said
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert sum(int(row["num_model_requests"]) for row in rows) >= 1


def test_the_receiver_takes_what_is_signed_and_nothing_else() -> None:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    body = '{"type": "response.completed", "data": {"id": "resp_1"}}'
    now = datetime.now(UTC)
    env = os.environ | {"WEBHOOK_SECRET": secret, "PORT": "0"}
    with subprocess.Popen(
        [sys.executable, "webhook_receiver.py"],
        cwd=EXAMPLES,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as receiver:
        assert receiver.stdout is not None
        address = receiver.stdout.readline().split()[-1]
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign("msg_1", now, body),
        }
        taken = httpx.post(address, content=body, headers=headers)
        told = receiver.stdout.readline()
        refused = httpx.post(address, content=body.replace("resp_1", "resp_2"), headers=headers)
        receiver.terminate()

    assert (taken.status_code, refused.status_code) == (204, 400)
    assert told.split() == ["response.completed", "resp_1"]
