"""The three kinds of clients: each sends one request and follows it to its end.

Called by `run`. A client never raises for a server's error, which it is there to record. Once its request was
accepted, it continues through restarts and cut streams until the job has ended or a time limit passes; then the job
counts as lost.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import orjson

from torpor.load.sample import LoadSample, SampleOutcome
from torpor.load.schedule import ClientKind, Shot, prompt_of

_CONNECT_S: Final = 10.0
_POLL_S: Final = 30.0
_AFTER_TROUBLE_S: Final = 0.5
_ENDED: Final = frozenset({"completed", "incomplete", "failed", "cancelled"})
_ANSWERED: Final = frozenset({"completed", "incomplete"})
_TROUBLE: Final = (aiohttp.ClientError, TimeoutError, OSError)


class Clients:
    """All clients of a run, with one session and one clock (`now` gives seconds from the start)."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: str,
        model: str,
        *,
        now: Callable[[], float],
        patience_s: float,
        key: str = "",
    ) -> None:
        self._session = session
        self._address = address
        self._model = model
        self._now = now
        self._patience_s = patience_s
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    async def send(self, shot: Shot, sample: LoadSample) -> None:
        """Send the request and record its outcome."""
        sample.sent_s = self._now()
        try:
            async with asyncio.timeout(self._patience_s):
                if shot.kind is ClientKind.SYNC:
                    await self._call(shot, sample)
                elif await self._submit(shot, sample):
                    await self._follow(shot, sample)
        except TimeoutError:
            sample.outcome = SampleOutcome.LOST if sample.accepted_s else SampleOutcome.UNREACHED
            sample.ended_s = self._now()

    async def _submit(self, shot: Shot, sample: LoadSample) -> bool:
        """True when the job was accepted."""
        line = {"url": "/v1/chat/completions", "body": self._body(shot)}
        answer = await self._post("/v1/jobs", line, sample)
        if answer is None:
            return False
        sample.job_id = answer["id"]
        sample.accepted_s = self._now()
        return True

    async def _follow(self, shot: Shot, sample: LoadSample) -> None:
        cursor = ""
        while True:
            try:
                if shot.kind is ClientKind.SSE:
                    cursor, job = await self._read_events(sample, cursor)
                else:
                    job = await self._poll(sample.job_id)
                if job is not None:
                    self._ended(sample, job)
                    return
            except _TROUBLE:
                await asyncio.sleep(_AFTER_TROUBLE_S)

    async def _poll(self, job_id: str) -> dict[str, Any] | None:
        """The ended job; None to poll again."""
        url = f"{self._address}/v1/jobs/{job_id}?wait={_POLL_S:.0f}"
        async with self._session.get(url, headers=self._headers) as answer:
            content = await answer.read()
            if answer.status != 200:
                await asyncio.sleep(_AFTER_TROUBLE_S)
                return None
        job: dict[str, Any] = orjson.loads(content)
        return job if job["state"] in _ENDED else None

    async def _read_events(
        self, sample: LoadSample, cursor: str
    ) -> tuple[str, dict[str, Any] | None]:
        """Follow the events from a cursor; gives the cursor reached, and the job if it has ended."""
        headers = self._headers | ({"last-event-id": cursor} if cursor else {})
        url = f"{self._address}/v1/jobs/{sample.job_id}/events"
        async with self._session.get(url, headers=headers) as answer:
            name = ""
            async for raw in answer.content:
                field, _, value = raw.decode().rstrip("\r\n").partition(": ")
                if field == "id":
                    cursor = value
                elif field == "event":
                    name = value
                elif field == "data" and name == "tokens" and not sample.first_token_s:
                    sample.first_token_s = self._now()
                elif field == "data" and name == "result":
                    return cursor, orjson.loads(value)
        return cursor, None

    async def _call(self, shot: Shot, sample: LoadSample) -> None:
        """OpenAI's call as client libraries make it; streamed, so that the time to the first token is known."""
        body = self._body(shot) | {"stream": True}
        url = f"{self._address}/v1/chat/completions"
        try:
            async with self._session.post(
                url, data=orjson.dumps(body), headers=self._headers
            ) as answer:
                sample.status = answer.status
                if answer.status != 200:
                    sample.outcome = SampleOutcome.REFUSED
                else:
                    sample.job_id = answer.headers.get("torpor-job-id", "")
                    sample.accepted_s = self._now()
                    await self._read_chunks(answer, sample)
        except _TROUBLE:
            # A held call that is cut off cannot be resumed.
            sample.outcome = SampleOutcome.FAILED if sample.accepted_s else SampleOutcome.UNREACHED
        sample.ended_s = self._now()

    async def _read_chunks(self, answer: aiohttp.ClientResponse, sample: LoadSample) -> None:
        sample.outcome = SampleOutcome.FAILED
        async for raw in answer.content:
            line = raw.strip()
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                if sample.first_token_s:
                    sample.outcome = SampleOutcome.COMPLETED
                return
            if not sample.first_token_s and b'"content"' in line:
                sample.first_token_s = self._now()

    async def settle(self, sample: LoadSample) -> None:
        """Read figures of a held call from its job's record; after the run, so that this is not part of the load."""
        if sample.kind is ClientKind.SYNC and sample.job_id:
            try:
                job = await self._poll(sample.job_id)
            except _TROUBLE:
                return
            if job is not None:
                _read_job(sample, job)

    def _ended(self, sample: LoadSample, job: dict[str, Any]) -> None:
        sample.ended_s = self._now()
        answered = job["state"] in _ANSWERED
        sample.outcome = SampleOutcome.COMPLETED if answered else SampleOutcome.FAILED
        _read_job(sample, job)
        if not sample.first_token_s and (first_ms := job["timings"].get("first_token_ms")):
            # A polling client sees no token; the record has the time of the first one.
            sample.first_token_s = sample.accepted_s + first_ms / 1000

    async def _post(self, path: str, body: Any, sample: LoadSample) -> dict[str, Any] | None:
        """The answer, or None when it was not accepted."""
        try:
            async with self._session.post(
                self._address + path, data=orjson.dumps(body), headers=self._headers
            ) as answer:
                content = await answer.read()
                sample.status = answer.status
        except _TROUBLE:
            sample.outcome = SampleOutcome.UNREACHED
            sample.ended_s = self._now()
            return None
        if sample.status >= 400:
            sample.outcome = SampleOutcome.REFUSED
            sample.ended_s = self._now()
            return None
        accepted: dict[str, Any] = orjson.loads(content)
        return accepted

    def _body(self, shot: Shot) -> dict[str, Any]:
        message = {"role": "user", "content": prompt_of(shot.prompt_tokens)}
        return {"model": self._model, "messages": [message], "max_tokens": shot.output_tokens}


def _read_job(sample: LoadSample, job: dict[str, Any]) -> None:
    queued_ms = job["timings"].get("queued_ms")
    sample.queued_s = None if queued_ms is None else queued_ms / 1000
    sample.output_tokens = (job.get("usage") or {}).get("completion_tokens", 0)
    sample.attempts = len(job["attempts"])
    sample.gpu_s = (job.get("cost") or {}).get("gpu_seconds", 0.0)
