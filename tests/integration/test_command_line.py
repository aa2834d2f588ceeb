"""The commands of a person, one after the other, on a real stack."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.stack import MODEL, TORPOR, LocalStack

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    env = {"TORPOR_GPU_PRICE_PER_HOUR": "2"}
    made = LocalStack(tmp_path_factory.mktemp("stack"), "--window", "60s", env=env).start()
    yield made
    made.stop()


def typed(
    stack: LocalStack, *words: str, stdin: str = "", code: int = 0
) -> subprocess.CompletedProcess[str]:
    """What a command printed; it must end with `code`."""
    shown = subprocess.run(
        [TORPOR, *words, "--data-dir", str(stack.folder)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == code, shown.stderr
    assert "Traceback" not in shown.stderr
    return shown


def submitted(stack: LocalStack, *flags: str) -> str:
    return typed(stack, "submit", "--max-tokens", "3", *flags).stdout.strip()


def test_a_submit_says_all_that_a_call_can(stack: LocalStack, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"top_p": 0.5, "max_tokens": 9}))
    flags = ["--system", "Be short.", "--temperature", "0", "--json-body", str(body)]
    flags += ["--metadata", "order=17", "--expires-after", "10m", "--idempotency-key", "order-17"]
    flags += ["--priority", "batch"]

    first = submitted(stack, *flags, "Why?")
    second = submitted(stack, *flags, "Why?")

    shown = typed(stack, "submit", "--json", "--wait", "--max-tokens", "2", "x").stdout
    job = stack.job(first, wait_s=50, include="request")
    assert first == second
    assert job["metadata"] == {"order": "17"}
    assert job["priority"] == "batch"
    assert job["deadline_ms"]
    asked = job["request"]["body"]
    assert [each["role"] for each in asked["messages"]] == ["system", "user"]
    assert (asked["top_p"], asked["temperature"], asked["max_tokens"]) == (0.5, 0, 3)
    assert json.loads(shown)["state"] == "completed"


def test_jobs_are_listed_with_their_words_found_and_paged(stack: LocalStack) -> None:
    zebra = submitted(stack, "--metadata", "animal=zebra", "Why do zebras have stripes?")
    submitted(stack, "Why is the sky blue?")

    listed = typed(stack, "jobs", "--limit", "1")
    found = json.loads(typed(stack, "jobs", "--search", "STRIPES", "--json").stdout)

    assert "Why is the sky blue?" in listed.stdout
    assert "more: torpor jobs --cursor" in listed.stderr
    assert f"--data-dir {stack.folder}" in listed.stderr
    assert [job["id"] for job in found["data"]] == [zebra]
    cursor = listed.stderr.split("--cursor ")[1].split()[0]
    assert zebra in typed(stack, "jobs", "--limit", "1", "--cursor", cursor).stdout


def test_a_job_that_ended_is_asked_again(stack: LocalStack) -> None:
    job_id = submitted(stack, "Again?")
    stack.job(job_id, wait_s=50)

    again = typed(stack, "jobs", "retry", job_id).stdout.strip()

    job = stack.job(again, wait_s=50, include="request")
    assert again != job_id
    assert job["state"] == "completed"
    assert job["request"]["body"]["messages"][-1]["content"] == "Again?"


def test_watch_of_an_ended_job_shows_its_steps_in_order(stack: LocalStack) -> None:
    job_id = submitted(stack, "In order?")
    stack.job(job_id, wait_s=50)

    lines = typed(stack, "watch", job_id).stderr.splitlines()

    told = [line.split("s  ")[1].split()[0] for line in lines[:2]]
    assert told == ["in_progress,", "completed"]


def test_a_chat_remembers_its_turns(stack: LocalStack) -> None:
    shown = typed(stack, "chat", "--max-tokens", "3", stdin="one\ntwo\n")

    newest = json.loads(typed(stack, "jobs", "--limit", "1", "--json").stdout)["data"][0]["id"]
    roles = [
        each["role"] for each in stack.job(newest, include="request")["request"]["body"]["messages"]
    ]
    assert roles == ["user", "assistant", "user"]
    assert len(shown.stdout.splitlines()) == 2


def test_a_batch_goes_in_as_lines_and_comes_out_as_lines(stack: LocalStack, tmp_path: Path) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    lines, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    lines.write_text(json.dumps(line) + "\n")

    typed(stack, "batch", "submit", str(lines), "--wait", "-o", str(answers))

    assert json.loads(answers.read_text())["custom_id"] == "a"
    assert "completed" in typed(stack, "batch", "list").stdout
    file_id = typed(stack, "files", "upload", str(lines)).stdout.strip()
    assert file_id in typed(stack, "files", "list").stdout
    assert typed(stack, "files", "read", file_id).stdout == lines.read_text()
    typed(stack, "files", "delete", file_id)
    assert file_id not in typed(stack, "files", "list").stdout


def test_webhooks_keys_models_and_usage_are_in_reach(stack: LocalStack) -> None:
    submitted(stack, "--wait", "x")
    receiver = typed(stack, "webhooks", "add", "https://example.com/hook").stdout.split()[0]
    assert receiver in typed(stack, "webhooks", "list").stdout
    assert "whsec_" in typed(stack, "webhooks", "rotate", receiver).stdout
    typed(stack, "webhooks", "delete", receiver)

    created = typed(stack, "keys", "create", "acme", "--name", "laptop")
    said = " ".join(created.stderr.split())
    assert "this stack asks for no keys" in said
    assert "TORPOR_KEYS_SOURCE=redis" in said
    key = json.loads(typed(stack, "keys", "list", "--json").stdout)[0]
    assert (key["tenant"], "digest" in key) == ("acme", False)
    typed(stack, "keys", "revoke", key["id"])

    assert MODEL in typed(stack, "models").stdout
    assert MODEL in typed(stack, "usage", "--since", "1h").stdout


def test_an_answer_goes_on_over_a_restart_of_the_api(stack: LocalStack) -> None:
    words = ["submit", "--wait", "--max-tokens", "400", "--json-body", '{"ignore_eos": true}']
    with subprocess.Popen(
        [TORPOR, *words, "long", "--data-dir", str(stack.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as asking:
        assert asking.stderr is not None
        for line in asking.stderr:
            if "attempt 1" in line:
                break
        (api,) = [p for p in stack.children() if _command(p).endswith("-m api")]
        os.kill(api, signal.SIGKILL)
        answer, rest = asking.communicate(timeout=120)

    job_id = json.loads(typed(stack, "jobs", "--limit", "1", "--json").stdout)["data"][0]["id"]
    whole = stack.job(job_id, include="result")["result"]["choices"][0]["message"]["content"]
    assert asking.returncode == 0, rest
    assert "completed (" in rest
    assert answer.strip() == whole.strip()


def test_a_stack_starts_behind_the_terminal_and_ends_by_command(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    where = ["--data-dir", str(folder)]
    up = [TORPOR, "up", "--engine", "seeded", "--port", "0", "--broker-port", "0", "--detach"]

    started = subprocess.run([*up, *where], capture_output=True, text=True, timeout=120)
    try:
        assert started.returncode == 0, started.stderr
        hint = started.stderr.split("try ")[1].splitlines()[0]
        asked = subprocess.run(
            [TORPOR, "submit", *where, "--wait", "--max-tokens", "2", "x"], capture_output=True
        )
        logs = subprocess.run([TORPOR, "logs", "api", *where], capture_output=True, text=True)
    finally:
        ended = subprocess.run([TORPOR, "down", *where], capture_output=True, text=True)

    assert f"--data-dir {folder}" in hint
    assert asked.returncode == 0
    assert '"service":"api"' in logs.stdout
    assert ended.returncode == 0, ended.stderr
    assert not (folder / "addresses.json").exists()
    assert folder.stat().st_mode & 0o077 == 0
    assert subprocess.run([TORPOR, "down", *where], capture_output=True).returncode == 1


def test_after_a_kill_the_next_stack_is_up_when_it_is_said_to_be(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    where = ["--data-dir", str(folder)]
    up = [TORPOR, "up", "--engine", "seeded", "--port", "0", "--broker-port", "0", "--detach"]
    assert subprocess.run([*up, *where], capture_output=True, timeout=120).returncode == 0
    os.kill(int((folder / "lock").read_text()), signal.SIGKILL)

    gone = subprocess.run([TORPOR, "status", *where], capture_output=True, text=True)
    started = subprocess.run([*up, *where], capture_output=True, text=True, timeout=120)
    try:
        assert started.returncode == 0, started.stderr
        asked = subprocess.run([TORPOR, "jobs", *where], capture_output=True, text=True)
    finally:
        subprocess.run([TORPOR, "down", *where], capture_output=True)

    assert f"no stack runs on {folder}" in gone.stderr
    assert (asked.returncode, asked.stderr) == (0, "no jobs\n")


def test_a_stack_that_cannot_start_behind_the_terminal_says_why(tmp_path: Path) -> None:
    up = [TORPOR, "up", "--engine", "vllm", "--model", str(tmp_path), "--detach"]
    up += ["--port", "0", "--broker-port", "0", "--data-dir", str(tmp_path / "data")]

    started = subprocess.run(up, capture_output=True, text=True, timeout=120)

    assert started.returncode == 1
    assert "holds no model" in started.stderr.splitlines()[-1]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").replace("\0", " ")


def test_what_a_command_prints_has_no_log_lines_in_it() -> None:
    """A script reads the output of `keys`, which uses the store without an api between them."""
    done = subprocess.run(
        [TORPOR, "keys", "list", "--redis-url", "redis://127.0.0.1:1/0"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "torpor: the store does not answer\n"
