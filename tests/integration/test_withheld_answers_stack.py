"""A withheld answer in a whole stack, for every kind of reader: its text is in none of what they are given."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
from websockets.asyncio.client import connect

from predictor.engine.engine import EngineRequest
from predictor.engine.seeded_engine import SeededEngine, SeededSettings
from tests.integration.api.receiver import receiving
from tests.integration.engine_calls import all_steps, body_of
from tests.integration.stack import LocalStack, planned_stack
from tests.integration.test_moderation_stack import tokens_of

FORBIDDEN: Final = "hummingbird"
TOKENS: Final = 90
PIPELINES = "".join(
    f"""
{hold}:
  cache: {{exact: {{ttl_s: 3600, sampled: true}}}}
  steps:
    - step: route
      settings: {{tiers: [small], holdout: 0}}
    - step: validate-output
      settings: {{mode: block, hold: {hold}, rules: [{{words: [{FORBIDDEN}]}}]}}
"""
    for hold in ("window", "whole")
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    words = ("--model", "small=seeded")
    env = {"TORPOR_WEBHOOK_ALLOW": '["127.0.0.0/8"]', "TORPOR_SEEDED_TOKENS_PER_S": "100"}
    folder = tmp_path_factory.mktemp("withheld")
    with planned_stack(folder, PIPELINES, *words, env=env) as made:
        yield made


@pytest.fixture(scope="module")
def withheld() -> tuple[int, str]:
    """A seed whose answer has the forbidden word late, and that answer, by the engine itself."""
    return asyncio.run(_seed())


async def _seed() -> tuple[int, str]:
    engine = SeededEngine(
        SeededSettings(model_names=("small",), tokens_per_s=0, prefill_tokens_per_s=0)
    )
    await engine.start(lambda _: None)
    try:
        for seed in range(2000):
            asked = EngineRequest(str(seed), "/v1/chat/completions", chat("small", seed))
            body = body_of(await all_steps(engine, asked))
            text = str(body["choices"][0]["message"]["content"])
            if text.find(FORBIDDEN) > 250:
                return seed, text
    finally:
        await engine.stop()
    raise AssertionError("no such answer")


def chat(model: str, seed: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": model, "messages": messages, "seed": seed, "max_tokens": TOKENS, **more}


@dataclass
class Readers:
    """Everything that a kind of reader was given."""

    http: httpx.AsyncClient
    api: str
    seen: dict[str, str] = field(default_factory=dict)

    async def get(self, name: str, path: str, **params: str) -> Any:
        answer = await self.http.get(path, params=params)
        self.seen[name] = self.seen.get(name, "") + answer.text
        return answer.json() if "json" in answer.headers["content-type"] else answer.text

    async def post(self, name: str, path: str, body: Any) -> dict[str, Any]:
        answer = await self.http.post(path, json=body)
        self.seen[name] = answer.text
        return dict(answer.json())

    async def submit(self, body: dict[str, Any], **more: Any) -> str:
        line = {"url": "/v1/chat/completions", "body": body, **more}
        return str((await self.post("submit", "/v1/jobs", line))["id"])

    async def live(self, job_id: str) -> None:
        accept = {"accept": "text/event-stream"}
        answer = await self.http.get(f"/v1/jobs/{job_id}/events", headers=accept)
        self.seen[f"events of {job_id}"] = answer.text

    async def socket(self, job_id: str) -> None:
        url = f"{self.api.replace('http', 'ws')}/v1/jobs/{job_id}/ws"
        async with connect(url) as opened:
            self.seen[f"socket of {job_id}"] = "".join([str(message) async for message in opened])

    async def chunks(self, body: dict[str, Any]) -> None:
        answer = await self.http.post("/v1/chat/completions", json={**body, "stream": True})
        self.seen["chat stream"] = answer.text

    async def ended(self, job_id: str) -> dict[str, Any]:
        return dict(await self.get(f"poll of {job_id}", f"/v1/jobs/{job_id}", wait="50"))

    async def feed(self, job_id: str) -> None:
        """The feed of result events, up to this job's."""
        url, accept = "/v1/events?after=0-0", {"accept": "text/event-stream"}
        self.seen["feed"] = ""
        async with self.http.stream("GET", url, headers=accept) as answer:
            async for part in answer.aiter_text():
                self.seen["feed"] += part
                if any(job_id in event for event in self.seen["feed"].split("\n\n")[:-1]):
                    return


async def batch_of(readers: Readers, body: dict[str, Any]) -> None:
    """A batch with one line, and its files."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    files = {"file": ("lines.jsonl", json.dumps(line).encode()), "purpose": (None, "batch")}
    upload = (await readers.http.post("/v1/files", files=files)).json()["id"]
    asked = {"input_file_id": upload, "endpoint": line["url"], "completion_window": "24h"}
    batch = await readers.post("batch", "/v1/batches", asked)
    while batch["status"] not in ("completed", "failed"):
        await asyncio.sleep(0.2)
        batch = await readers.get("batch", f"/v1/batches/{batch['id']}")
    written = [batch[each] for each in ("output_file_id", "error_file_id") if batch[each]]
    assert written
    for each in written:
        await readers.get("batch file", f"/v1/files/{each}/content")
    assert "content_filter" in readers.seen["batch file"]


async def conversation_of(readers: Readers, model: str, seed: int) -> None:
    """A response in a conversation, and what is kept of it there."""
    made = await readers.post("conversation", "/v1/conversations", {})
    asked = {"model": model, "input": "hello", "seed": seed, "max_output_tokens": TOKENS}
    said = await readers.post("response", "/v1/responses", {**asked, "conversation": made["id"]})
    assert said["incomplete_details"] == {"reason": "content_filter"}
    await readers.get("response again", f"/v1/responses/{said['id']}")
    await readers.get("items", f"/v1/conversations/{made['id']}/items")


@pytest.mark.parametrize("hold", ["window", "whole"])
async def test_no_reader_is_given_what_was_withheld(
    stack: LocalStack, withheld: tuple[int, str], hold: str
) -> None:
    seed, text = withheld
    api, body = stack.addresses["api"], chat(hold, seed)
    async with receiving() as hook, httpx.AsyncClient(base_url=api, timeout=120) as http:
        readers = Readers(http, api)
        leader = await readers.submit(body, webhook={"url": hook.url})
        follower = await readers.submit(body)
        follows = (await readers.get("follower", f"/v1/jobs/{follower}"))["follows"]
        await asyncio.gather(
            *(readers.live(each) for each in (leader, follower)),
            *(readers.socket(each) for each in (leader, follower)),
            readers.chunks({**body, "store": True}),
            batch_of(readers, body),
            conversation_of(readers, hold, seed),
        )
        jobs = [await readers.ended(each) for each in (leader, follower)]
        again = await readers.submit(body)  # with the first one's answer kept, this would be it
        jobs.append(await readers.ended(again))
        await readers.feed(leader)
        for name in ("result", "events", "timeline"):
            await readers.get(name, f"/v1/jobs/{leader}/{name}")
        stored = await readers.get("stored", "/v1/chat/completions")
        readers.seen["webhook"] = (await hook.wait_for(1, 20))[0].body.decode()
    readers.seen["logs"] = stack.said()

    assert follows == leader
    for job in jobs:
        assert (job["state"], job["incomplete_reason"]) == ("incomplete", "content_filter"), job
    assert not (jobs[-1].get("cache") or {}).get("source_job")
    assert stored["data"]
    first = text[text.find(FORBIDDEN) :] if hold == "window" else text[:30]
    for name, seen in readers.seen.items():
        assert FORBIDDEN not in seen, name
        assert first not in seen, name
    if hold == "window":
        assert text.startswith(told := tokens_of(readers.seen[f"events of {leader}"]))
        assert told
    else:
        assert not any("event: tokens" in seen for seen in readers.seen.values())
