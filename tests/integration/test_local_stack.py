"""`torpor up`, from outside: zero to one to zero, crashes, clean ends, and a second start."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.stack import MODEL, TORPOR, LocalStack, alive, torpor, up

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """One stack for the tests that leave it as they found it."""
    made = LocalStack(tmp_path_factory.mktemp("stack"), "--window", "6s").start()
    yield made
    made.stop()


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[LocalStack]:
    """A stack to be mistreated."""
    made = LocalStack(tmp_path / "data", "--window", "6s", "--lease", "2s").start()
    yield made
    made.stop()


def test_a_job_at_zero_wakes_a_predictor_and_after_the_window_it_sleeps_again(
    stack: LocalStack,
) -> None:
    stack.until(lambda: stack.status()["replicas"]["ready"] == 0)

    job = stack.job(stack.submit(max_tokens=5), wait_s=50)

    assert job["state"] == "completed"
    assert stack.status()["replicas"]["ready"] == 1
    stack.until(lambda: not stack.status()["replicas"]["list"])


def test_the_command_line_shows_the_answer_as_it_comes(stack: LocalStack) -> None:
    shown = torpor(stack, "submit", "--wait", "--max-tokens", "6", "Why?")

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip()
    assert "accepted" in shown.stderr
    assert "completed (6 tokens" in shown.stderr


def test_a_prompt_may_come_from_standard_input_and_the_job_as_json(stack: LocalStack) -> None:
    shown = torpor(stack, "submit", "--json", "--max-tokens", "3", stdin="Why?")

    job = json.loads(shown.stdout)

    watched = torpor(stack, "watch", "--json", job["id"])
    events = [json.loads(line) for line in watched.stdout.splitlines()]
    assert events[-1]["event"] == "result"
    assert events[-1]["data"]["state"] == "completed"


def test_jobs_and_status_list_what_is_there(stack: LocalStack) -> None:
    job_id = stack.submit(max_tokens=2)
    stack.job(job_id, wait_s=50)

    listed = json.loads(torpor(stack, "jobs", "--json").stdout)
    status = json.loads(torpor(stack, "status", "--json").stdout)

    assert job_id in [job["id"] for job in listed["data"]]
    assert status["addresses"]["broker"] == stack.addresses["broker"]
    assert [each["queue"]["pending"] for each in status["models"]] == [0]


def test_a_foreign_producers_event_without_a_model_attribute_is_routed_by_its_body(
    stack: LocalStack,
) -> None:
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "order-7",
        "ce-source": "/shop",
        "ce-type": "dev.torpor.inference.requested.v1",
        "content-type": "application/json",
    }
    line = {"url": "/v1/completions", "body": {"model": MODEL, "prompt": "hi", "max_tokens": 2}}

    taken = httpx.post(stack.addresses["broker"] + "/", json=line, headers=headers)

    assert taken.status_code == 202
    stack.until(
        lambda: any(
            job["state"] == "completed" and job["url"] == "/v1/completions"
            for job in json.loads(torpor(stack, "jobs", "--json").stdout)["data"]
        )
    )


def test_a_job_that_always_fails_is_set_aside_and_an_edited_one_gets_a_second_life(
    stack: LocalStack,
) -> None:
    job_id = stack.submit(max_tokens=5, seeded={"fail_at": 1})
    stack.until(lambda: stack.job(job_id)["is_dead_letter"])
    shown = json.loads(torpor(stack, "dead-letters", "show", job_id).stdout)
    assert len(shown["attempts"]) == 3
    assert shown["request"]["body"]["seeded"] == {"fail_at": 1}

    line = {"url": "/v1/completions", "body": {"model": MODEL, "prompt": "hi", "max_tokens": 5}}
    redriven = torpor(
        stack, "dead-letters", "redrive", job_id, "--request", "-", stdin=json.dumps(line)
    )

    assert redriven.stdout.split() == [job_id]
    job = stack.job(job_id, wait_s=50)
    assert job["state"] == "completed"
    assert job["attempt"] == 5


def test_a_part_that_is_killed_is_started_again_and_the_job_ends(own_stack: LocalStack) -> None:
    broker = [p for p in own_stack.children() if "eventing.broker" in _command(p)]
    own_stack.job(own_stack.submit(max_tokens=1), wait_s=50)

    os.kill(broker[0], signal.SIGKILL)
    own_stack.until(lambda: _accepts(own_stack))

    assert own_stack.job(own_stack.submit(max_tokens=3), wait_s=50)["state"] == "completed"


def test_a_predictor_killed_in_mid_thought_costs_no_token(own_stack: LocalStack) -> None:
    job_id = own_stack.submit(max_tokens=400, seeded={"output_tokens": 400})
    own_stack.until(lambda: own_stack.job(job_id)["token_count"] > 20)

    os.kill(own_stack.status()["replicas"]["list"][0]["pid"], signal.SIGKILL)

    job = own_stack.job(job_id, wait_s=55)
    assert job["state"] == "completed"
    assert job["usage"]["completion_tokens"] == 400
    assert job["attempts"][1]["resumed_from"] > 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stack_stopped_during_work_ends_cleanly_and_the_next_start_finishes_it(
    tmp_path: Path, number: int
) -> None:
    first = LocalStack(tmp_path / "data", "--window", "6s").start()
    job_id = first.submit(max_tokens=1500, seeded={"output_tokens": 1500})
    first.until(lambda: first.job(job_id)["token_count"] > 20)
    below = first.children()

    status = first.stop(number)

    assert status == 0
    assert "Traceback" not in first.said()
    assert "Exception" not in first.said()
    assert "store is away" not in first.said()  # it was starting
    assert alive(below) == []
    second = LocalStack(tmp_path / "data", "--window", "6s").start()
    try:
        job = second.job(job_id, wait_s=55)
        assert job["state"] == "completed"
        assert job["usage"]["completion_tokens"] == 1500
        assert job["attempts"][1]["resumed_from"] > 20
    finally:
        second.stop()


def test_a_second_signal_does_not_wait_for_the_thinkers_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    stack = LocalStack(tmp_path / "data", "--drain-grace", "10m").start()
    job_id = stack.submit(max_tokens=1500, seeded={"output_tokens": 1500, "tokens_per_s": 1})
    stack.until(lambda: stack.job(job_id)["token_count"] > 0)
    below = stack.children()

    stack.send(signal.SIGINT)
    stack.until(lambda: "Ctrl-C again" in stack.said())
    status = stack.stop(signal.SIGINT, timeout_s=120)

    assert status == 0
    assert "Traceback" not in stack.said()
    stack.until(lambda: alive(below) == [])


def test_a_start_that_is_interrupted_ends_without_going_on_to_the_next_part(tmp_path: Path) -> None:
    command = [TORPOR, "up", "--engine", "seeded", "--port", "0", "--broker-port", "0"]
    with subprocess.Popen(
        [*command, "--data-dir", str(tmp_path)], stderr=subprocess.PIPE, text=True
    ) as starting:
        assert starting.stderr is not None
        first = starting.stderr.readline()
        starting.send_signal(signal.SIGINT)
        _, rest = starting.communicate(timeout=120)

    assert "starting the embedded Valkey" in first
    assert starting.returncode == 0
    assert rest.splitlines()[-1].startswith("stopped; state is kept")
    assert "Torpor is up" not in rest
    assert "Traceback" not in rest


def test_kill_9_leaves_no_process_behind(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "data").start()
    job_id = stack.submit(max_tokens=1500, seeded={"output_tokens": 1500})
    stack.until(lambda: stack.job(job_id)["token_count"] > 0)
    below = stack.children()
    assert len(below) >= 4

    os.kill(stack.pid, signal.SIGKILL)
    stack.stop()

    deadline = time.monotonic() + 5
    while alive(below) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(below) == []


def test_a_second_stack_on_the_same_folder_is_refused_in_one_line(stack: LocalStack) -> None:
    refused = up(stack.folder)

    assert refused.returncode == 1
    assert "runs on" in refused.stderr
    assert "Traceback" not in refused.stderr


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def _accepts(stack: LocalStack) -> bool:
    line = {"url": "/v1/completions", "body": {"model": MODEL, "prompt": "x", "max_tokens": 1}}
    answer = httpx.post(stack.addresses["api"] + "/v1/jobs", json=line)
    return answer.status_code == 202


def test_kedas_policy_wakes_a_predictor_and_takes_the_last_one_away(tmp_path: Path) -> None:
    """On lag and pending of the queue, with KEDA's polling and cooldown instead of the KPA."""
    stack = LocalStack(tmp_path / "data", "--autoscaler", "keda", "--window", "6s").start()
    try:
        long = stack.submit(max_tokens=600, seeded={"output_tokens": 600})
        stack.until(lambda: stack.job(long)["token_count"] > 0)

        # 600 tokens take 3 s, thirty of KEDA's: five cooldowns with nothing but work in flight.
        job = stack.job(long, wait_s=50)

        assert job["state"] == "completed"
        assert job["attempt"] == 1
        stack.until(lambda: not stack.status()["replicas"]["list"])
    finally:
        stack.stop()


def test_a_job_that_still_waits_for_a_predictor_does_not_disturb_a_clean_end(
    tmp_path: Path,
) -> None:
    slow = {"TORPOR_SEEDED_START_UP_S": "30"}
    stack = LocalStack(tmp_path / "data", env=slow).start()
    stack.submit(max_tokens=1)
    stack.until(lambda: stack.status()["activator"]["waiting"] == 1)

    assert stack.stop() == 0

    assert "Exception" not in stack.said()


ENDS = 20 if int(os.environ.get("TORPOR_FAULT_TRIALS", "20")) >= 200 else 1
"""Times that the last predictor goes; twenty make issue 6's 500 events."""


@pytest.mark.timeout(150 * ENDS)
def test_events_that_come_as_the_autoscaler_sends_the_last_predictor_away_are_all_served(
    stack: LocalStack,
) -> None:
    for _ in range(ENDS):
        stack.job(stack.submit(max_tokens=1), wait_s=50)
        stack.until(lambda: stack.status()["replicas"]["wanted"] == 0)

        jobs = asyncio.run(submits_while_it_goes(stack.addresses["api"]))

        for job_id in jobs:
            assert stack.job(job_id, wait_s=50)["state"] == "completed"


async def submits_while_it_goes(address: str) -> list[str]:
    """The ids of 25 short jobs, spread over the 0.2 s in which an idle predictor ends."""
    line = {"url": "/v1/completions", "body": {"model": MODEL, "prompt": "x", "max_tokens": 1}}
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:

        async def one(number: int) -> str:
            await asyncio.sleep(number * 0.2 / 25)
            answer = await client.post("/v1/jobs", json=line)
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        return await asyncio.gather(*(one(number) for number in range(25)))


BURST = 10_000 if int(os.environ.get("TORPOR_FAULT_TRIALS", "20")) >= 200 else 150
"""Submits at once; the long form is F23's own number."""


@pytest.mark.timeout(60 + BURST / 10)
def test_a_burst_at_zero_is_accepted_or_refused_with_503_and_the_queue_drains(
    stack: LocalStack,
) -> None:
    """F23: nothing that got its 202 is lost, what got none never ran, and no predictor more."""
    stack.until(lambda: not stack.status()["replicas"]["list"], 30)

    answers = asyncio.run(burst(stack.addresses["api"]))

    accepted = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    refused = [answer for answer in answers if answer.status_code != 202]
    most = 0
    completed: set[str] = set()
    deadline = time.monotonic() + 30 + BURST / 20
    with httpx.Client(base_url=stack.addresses["api"], timeout=120) as client:
        while not accepted <= completed and time.monotonic() < deadline:
            most = max(most, len(stack.status()["replicas"]["list"]))
            completed = ids_of(client, "completed")
    assert accepted - completed == set()
    assert accepted
    assert {answer.status_code for answer in refused} <= {429, 503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert most == 1
    queue = stack.status()["queue"]
    assert (sum(queue["waiting"].values()), queue["retrying"]) == (0, 0)


def ids_of(client: httpx.Client, state: str) -> set[str]:
    """Every job in this state."""
    found: set[str] = set()
    query = {"state": state, "limit": "100"}
    while True:
        page = client.get("/v1/jobs", params=query).json()
        found |= {job["id"] for job in page["data"]}
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


async def burst(address: str) -> list[httpx.Response]:
    """What `BURST` submits of a short job are answered, as fast as they can be sent."""
    line = {
        "url": "/v1/completions",
        "body": {"model": MODEL, "prompt": "x", "seeded": {"output_tokens": 1}},
    }
    abreast = asyncio.Semaphore(200)
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120) as client:

        async def one() -> httpx.Response:
            async with abreast:
                return await client.post("/v1/jobs", json=line)

        return await asyncio.gather(*(one() for _ in range(BURST)))


def test_the_data_of_a_stack_is_for_its_owner_only(own_stack: LocalStack) -> None:
    own_stack.job(own_stack.submit(max_tokens=2), wait_s=50)

    ours = [own_stack.folder, *own_stack.folder.rglob("*")]
    open_to_others = [path for path in ours if path.lstat().st_mode & 0o077]

    assert [p.name for p in open_to_others if p.name not in ("data", "said.log")] == []


def test_a_hostile_dead_letter_is_listed_and_never_obeyed(stack: LocalStack) -> None:
    evil = "[/] [red]x \x1b]52;c;ZXZpbA==\x07 \x1b]8;;http://evil.example\x1b\\"
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "evil",
        "ce-source": "/shop",
        "ce-type": "dev.torpor.inference.requested.v1",
        "ce-model": MODEL,
        "content-type": "application/json",
    }
    line = {"url": "/v1/completions", "body": {"model": evil, "prompt": "hi"}}
    httpx.post(stack.addresses["broker"] + "/", json=line, headers=headers)
    stack.until(lambda: "evil" in torpor(stack, "dead-letters", "list", "--json").stdout)

    listed = torpor(stack, "dead-letters", "list")

    assert listed.returncode == 0
    assert "Traceback" not in listed.stderr
    assert "[/] [red]x" in listed.stdout
    assert "\x1b" not in listed.stdout


def test_a_predictor_that_died_gives_its_lease_back_at_once(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "data", "--lease", "10m").start()
    try:
        job_id = stack.submit(max_tokens=300, seeded={"output_tokens": 300})
        stack.until(lambda: stack.job(job_id)["token_count"] > 20)
        os.kill(stack.status()["replicas"]["list"][0]["pid"], signal.SIGKILL)
        job = stack.job(job_id, wait_s=50)
    finally:
        stack.stop()

    assert job["state"] == "completed"
    assert [each["outcome"] for each in job["attempts"]] == ["lost", "completed"]
