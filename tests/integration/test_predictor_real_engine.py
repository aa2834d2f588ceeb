"""The whole predictor with vLLM in it: a thought that survives, as processes on a real Valkey.

Two predictors are forked from one pre-imported parent, as in the local stack. What the engine does
by itself (LoRA, parsers, structured output) is `test_vllm_engine`'s.
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from redis.asyncio import Redis

from eventing.cloudevent.event import Event
from eventing.job.job import JobError, JobState
from eventing.job.store import AcquireStatus, ReleaseReason
from eventing.job.stream import EntryKind
from eventing.redis import keys
from eventing.redis.connection import connect
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.store.redis_store import RedisStore
from predictor.model_files.weights import DEFAULT_MODEL, ensure_model
from steps.embedding.packaged import PackagedEmbedder
from tests.awake import awake_s
from tests.contract.semantic_rig import SERVES, SemanticRig, is_hit, text_of
from tests.integration.predictor_process import (
    FAST,
    Answered,
    answers_ready,
    deliver,
    read_metric,
)
from tests.redis_server import die_with_parent, free_port
from tests.time_limits import STORE_S
from tests.unit.predictor.harness import asking, job_id_of, read_ids, read_text

pytest.importorskip("vllm", reason="needs vLLM (`pip install torpor[cpu]`)")

pytestmark = [
    pytest.mark.real_engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
]

ARGS = ("--max-model-len", "2048", "--max-num-seqs", "16", "--kv-cache-memory-bytes", "134217728")
STORY = "Tell me a story about a hummingbird that sleeps through the winter."
LEASE_S = 3.0
IS_LONG_FORM = int(os.environ.get("TORPOR_FAULT_TRIALS", "20")) > 20
SEAMS = 24 if IS_LONG_FORM else 12
KILLS = 20 if IS_LONG_FORM else 4
"""Of whole processes: a start costs 4 s of CPU."""
MOST_BETWEEN_KILLS = 8
KILLED: dict[str, Any] = {"max_tokens": 60 + KILLS * MOST_BETWEEN_KILLS, "ignore_eos": True}


@dataclass(slots=True)
class Forked:
    """A predictor that the parent forked."""

    pid: int
    url: str

    async def deliver(self, event: Event) -> Answered:
        return await deliver(self.url, event, timeout_s=120)

    async def deliver_until_taken(self, event: Event) -> Answered:
        """As a broker does: again after a 409 or a 503."""
        while (answer := await self.deliver(event)).status in (409, 503):
            await asyncio.sleep(0.02)
        return answer


class Parent:
    """`python -m predictor.process.parent`, and what it says."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        place = ensure_model(DEFAULT_MODEL, Path(".torpor/models"), print)
        ours = {"model": place, "served_model_name": DEFAULT_MODEL, "vllm_args": ARGS}
        shared = {"models": [ours]}
        path = folder / "parent.sock"
        self._folder = folder
        self.log = folder / "parent.log"
        environment = FAST | {
            "TORPOR_MODEL": place,
            "TORPOR_MODEL_NAME": DEFAULT_MODEL,
            "TORPOR_REDIS_URL": redis_url,
            "TORPOR_LEASE_S": str(LEASE_S),
            "TORPOR_MAX_ATTEMPTS": "100",  # each kill is a lost attempt
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "predictor.process.parent", "--socket", str(path)),
                    *("--preload", f"predictor.engine.vllm.preload:preload={json.dumps(shared)}"),
                ],
                env=dict(os.environ) | environment,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        self._exit_codes: dict[int, int] = {}
        self._lines = self._connect(path)
        assert next(self._lines)["ready"]

    def fork(self, name: str) -> Forked:
        port = free_port()
        request = {
            "argv": ["--host", "127.0.0.1", "--http_port", str(port), "--replica-id", name, *ARGS],
            "env": {},
            "log_path": str(self._folder / f"{name}.log"),
        }
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while "exit_code" in (line := next(self._lines)):
            self._exit_codes[line["pid"]] = line["exit_code"]  # of one that ended before
        return Forked(line["pid"], f"http://127.0.0.1:{port}")

    def exit_code_of(self, pid: int) -> int:
        """Waits for its end."""
        while pid not in self._exit_codes:
            line = next(self._lines)
            self._exit_codes[line["pid"]] = line["exit_code"]
        return self._exit_codes[pid]

    def _connect(self, path: Path) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + 60
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(100)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        self._file = self._socket.makefile()
        return (json.loads(line) for line in self._file)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._file.close()
        self._socket.close()


@dataclass(slots=True)
class Pair:
    """Two predictors that serve, their parent, and the seconds both took from fork to ready."""

    parent: Parent
    first: Forked
    second: Forked
    ready_s: float


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("real")
    parent = Parent(folder, redis_url)
    try:
        started = time.monotonic()
        first, second = parent.fork("a"), parent.fork("b")
        while not all(answers_ready(each.url, DEFAULT_MODEL) for each in (first, second)):
            assert time.monotonic() - started < 90, _logs(folder)
            time.sleep(0.1)
        yield Pair(parent, first, second, time.monotonic() - started)
    finally:
        parent.end()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def valkey(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url, timeout_s=STORE_S)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(scope="module")
def jobs(valkey: Redis) -> RedisStore:
    return RedisStore(valkey)


def ask(text: str, event_id: str, **body: Any) -> Event:
    """A greedy request."""
    return asking(text, event_id=event_id, **{"model": DEFAULT_MODEL, "temperature": 0, **body})


async def wait_tokens(jobs: RedisStore, event: Event, count: int) -> None:
    """Return once that many tokens are checkpointed, or the job has ended."""
    while True:
        job = await jobs.get(job_id_of(event))
        if job is not None and (job.token_count >= count or job.state.is_terminal):
            return
        await asyncio.sleep(0.005)


async def cut_off(valkey: Redis, jobs: RedisStore, event: Event) -> None:
    """Make whoever runs the job a zombie: its lease lapses, another takes the job and hands it on.
    What it has not flushed is lost, as with a kill.
    """
    job_id = job_id_of(event)
    await valkey.hset(keys.job(job_id), "lease_until_ms", 1)
    taken = await jobs.acquire(job_id, "thief", can_resume=True)
    if taken.status is AcquireStatus.ACQUIRED:
        error = JobError(code="test", message="handed on")
        await jobs.release(taken.lease, ReleaseReason.HANDOVER, error)
        await valkey.hset(keys.job(job_id), "failures", 0)


def counts(answer: Answered) -> dict[str, Any]:
    """The usage of an answer, but for what its run found cached: that of a continued one can not be said."""
    usage: Mapping[str, Any] = answer.data["usage"]  # type: ignore[assignment]
    return {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


async def test_a_greedy_thought_with_many_seams_is_the_uninterrupted_one(
    pair: Pair, jobs: RedisStore, valkey: Redis
) -> None:
    """Attempts cut off at random tokens by fencing (the process lives on, its attempt does not);
    the seams are cut in one answer, so that an error at any of them would show.
    """
    chance = random.Random(4)
    whole = await pair.second.deliver(ask(STORY, "whole", max_tokens=6 * SEAMS + 16))
    event = ask(STORY, "seams", max_tokens=6 * SEAMS + 16)
    made, seams = 0, 0
    while seams < SEAMS:
        running = asyncio.ensure_future(pair.second.deliver_until_taken(event))
        made += chance.randint(1, 6)
        await wait_tokens(jobs, event, made)
        await cut_off(valkey, jobs, event)
        seams += 1
        running.cancel()
    answer = await pair.second.deliver_until_taken(event)
    entries = await jobs.read_stream(job_id_of(event))

    assert len(answer.text) > 100
    assert answer.text == whole.text
    assert counts(answer) == counts(whole)
    assert read_text(entries) == whole.text
    assert len(read_ids(entries)) == answer.data["usage"]["completion_tokens"]  # type: ignore[index]
    assert not any(entry.is_restart for entry in entries if entry.kind is EntryKind.ATTEMPT)


async def test_a_cancel_is_felt_by_the_engine_within_a_second(pair: Pair, jobs: RedisStore) -> None:
    event = ask(STORY, "cancel", max_tokens=1500, ignore_eos=True)
    delivery = asyncio.ensure_future(pair.second.deliver(event))
    await wait_tokens(jobs, event, 5)
    await jobs.cancel(job_id_of(event))
    cancelled_at = awake_s()
    answer = await delivery

    assert answer.data["state"] == JobState.CANCELLED
    assert awake_s() - cancelled_at < 1
    assert read_metric(pair.second.url, "torpor_predictor_in_flight") == 0
    # vLLM counts anew with its next step only, so give it one.
    await pair.second.deliver(ask("Hi.", "after-cancel", max_tokens=2))
    assert read_metric(pair.second.url, "vllm:num_requests_running") == 0


async def test_sixteen_thoughts_at_once_are_all_answered(pair: Pair) -> None:
    events = [ask(f"Say {i}.", f"many{i}", max_tokens=12) for i in range(16)]
    answers = await asyncio.gather(*[pair.second.deliver(event) for event in events])

    assert [answer.data["state"] for answer in answers] == [JobState.COMPLETED] * 16


async def test_structured_output_comes_through_the_queue(pair: Pair) -> None:
    choice = {"structured_outputs": {"choice": ["yes", "no"]}}
    answer = await pair.second.deliver(ask("Do birds fly?", "choice", max_tokens=8, **choice))

    assert answer.text in ("yes", "no")


async def test_a_prompt_longer_than_the_context_is_a_dead_letter_that_names_it(pair: Pair) -> None:
    answer = await pair.second.deliver(ask("word " * 3000, "long"))

    assert answer.data["state"] == JobState.FAILED
    assert "messages" in answer.data["error"]["field"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", None),
        ("messages", 5),
        ("structured_outputs", True),
        ("structured_outputs", [1]),
        ("stop", {"a": 1}),
        ("temperature", "hot"),
        ("tools", [{"type": "function"}]),
        ("logit_bias", 1),
    ],
)
async def test_a_field_of_the_wrong_type_is_a_400_that_names_it(
    pair: Pair, field: str, value: object
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": DEFAULT_MODEL, "messages": messages, "max_tokens": 1, field: value}
    async with (
        aiohttp.ClientSession(pair.second.url) as session,
        session.post("/v1/chat/completions", json=body) as reply,
    ):
        assert reply.status == 400
        assert str((await reply.json())["error"]["param"]).startswith(field)


async def test_a_thought_survives_kill_9_after_kill_9(pair: Pair, jobs: RedisStore) -> None:
    """One answer, its predictor killed at random tokens again and again: the kills' seams lie in
    one answer, so that an error at any of them would show. Two spares start while one thinks.
    """
    chance = random.Random(9)
    whole_event, event = ask(STORY, "whole2", **KILLED), ask(STORY, "killed", **KILLED)
    whole = await pair.second.deliver(whole_event)
    whole_ids = read_ids(await jobs.read_stream(job_id_of(whole_event)))
    runner, spares, killed_at = pair.first, [pair.parent.fork(f"k{n}") for n in range(2)], []
    for kill in range(KILLS):
        delivery = asyncio.ensure_future(runner.deliver_until_taken(event))
        made = await tokens_after(jobs, event, chance.randint(1, MOST_BETWEEN_KILLS))
        await asyncio.sleep(chance.random() / 10)  # off the checkpoints' beat
        os.kill(runner.pid, signal.SIGKILL)
        assert (await delivery).status == 0, f"the answer was whole before kill {kill}"
        killed_at.append(made)
        spares.append(pair.parent.fork(f"k{kill + 2}"))
        runner = await first_ready(spares)
    answer = await runner.deliver_until_taken(event)
    entries = await jobs.read_stream(job_id_of(event))
    attempts = [entry for entry in entries if entry.kind is EntryKind.ATTEMPT]
    for fork in (runner, *spares):
        os.kill(fork.pid, signal.SIGKILL)

    assert answer.text == whole.text
    assert read_text(entries) == whole.text
    assert read_ids(entries) == whole_ids  # and no index twice, none skipped
    assert [entry.is_restart for entry in attempts] == [False] * (KILLS + 1)
    assert all(a.index >= made for a, made in zip(attempts[1:], killed_at, strict=True))
    assert counts(answer) == counts(whole)


async def tokens_after(jobs: RedisStore, event: Event, more: int) -> int:
    """Return once `more` tokens are checkpointed on top of those there; how many stand then."""
    job = await jobs.get(job_id_of(event))
    wanted = (job.token_count if job else 0) + more
    await wait_tokens(jobs, event, wanted)
    return wanted


async def first_ready(spares: list[Forked]) -> Forked:
    """Take the spare that serves first off the list."""
    while True:
        for spare in spares:
            if answers_ready(spare.url, DEFAULT_MODEL):
                spares.remove(spare)
                return spare
        await asyncio.sleep(0.05)


async def test_a_dead_vllm_core_ends_its_predictor_and_the_thought_goes_on(
    pair: Pair, jobs: RedisStore
) -> None:
    whole = await pair.second.deliver(ask(STORY, "whole3", max_tokens=60))
    third = pair.parent.fork("c")
    while not answers_ready(third.url, DEFAULT_MODEL):
        await asyncio.sleep(0.1)
    event = ask(STORY, "dead-core", max_tokens=60)
    delivery = asyncio.ensure_future(third.deliver(event))
    await wait_tokens(jobs, event, 15)
    (core,) = psutil.Process(third.pid).children()
    core.kill()
    died_at = awake_s()
    assert (await delivery).status == 503
    assert awake_s() - died_at < 2
    assert not answers_ready(third.url, DEFAULT_MODEL)
    job = await jobs.get(job_id_of(event))
    answer = await pair.second.deliver(event)

    assert job is not None
    assert job.history[0].outcome == "handover"
    assert answer.text == whole.text
    assert pair.parent.exit_code_of(third.pid) == 1


async def test_a_real_model_verifies_a_match_of_the_semantic_cache_and_its_word_decides(
    pair: Pair, valkey: SharedRedis
) -> None:
    said: list[str] = []

    async def noted(request: web.Request) -> web.Response:
        """The model's answer, passed on unchanged."""
        url = f"{pair.second.url}/openai/v1/chat/completions"
        async with aiohttp.ClientSession() as http:
            answer = await http.post(url, json=await request.json())
            body = await answer.read()
        assert answer.status == 200, body
        said.append(json.loads(body)["choices"][0]["message"]["content"])
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", noted)
    async with TestServer(app) as server, aclosing(PackagedEmbedder()) as embedder:
        url = str(server.make_url("/v1"))
        verifier = {"url": url, "model": DEFAULT_MODEL, "timeout_ms": 60_000}
        settings = {**SERVES, "verifier": verifier, "verified_similarity": 0.5}
        rig = SemanticRig(valkey, embedder, settings=settings)
        async with aclosing(rig.models):
            await rig.ask("How do I cancel my subscription?", "In the settings.")
            job = await rig.ask("I want to end my subscription", "By a letter.")
    (word,) = said
    is_yes = word.strip().strip(".!*\"'").lower() == "yes"
    assert is_hit(job) is is_yes
    assert text_of(job) == ("In the settings." if is_yes else "By a letter.")
    told = rig.outcomes[job.id].detail
    assert (told.get("rule") == "open") is is_yes
    assert (told.get("verifier") == "no") is not is_yes


async def test_sigterm_hands_a_real_thought_over_and_ends_well(
    pair: Pair, jobs: RedisStore
) -> None:
    event = ask(STORY, "drained", max_tokens=1500, ignore_eos=True)
    delivery = asyncio.ensure_future(pair.second.deliver(event))
    await wait_tokens(jobs, event, 10)
    os.kill(pair.second.pid, signal.SIGTERM)
    told_at = awake_s()
    assert (await delivery).status == 503
    assert awake_s() - told_at < 1.5
    job = await jobs.get(job_id_of(event))

    assert job is not None
    assert (job.state, job.history[0].outcome) == (JobState.QUEUED, "handover")
    assert pair.parent.exit_code_of(pair.second.pid) == 0


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
