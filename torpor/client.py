"""A client of Torpor's api: submit, wait, stream, resume; async, and a blocking form of it.

For programs that use jobs; clients of OpenAI's API do not need it. Depends on `aiohttp` only.

    async with AsyncClient() as torpor:
        job = await torpor.submit("Why is the sky blue?")
        async for event in torpor.stream(job.id):
            print(event.text, end="")

A stream goes on after its last cursor when the connection or the api is lost, for `patience_s`.
"""

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypedDict, TypeVar, Unpack

import aiohttp
import orjson

from torpor.event_stream import server_sent_events

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_CALL: Final = aiohttp.ClientTimeout(total=70, connect=3)
_STREAM: Final = aiohttp.ClientTimeout(total=None, connect=3, sock_read=60)
_LONGEST_WAIT_S: Final = 50.0
"""Of one call; a longer wait asks again."""
_AWAY: Final = frozenset({502, 503, 504})
_ENDED: Final = frozenset({"completed", "failed", "cancelled"})
_PAUSE_S: Final = 0.5
_SUBMIT_TRIES: Final = 3
_T = TypeVar("_T")


class TorporError(Exception):
    """The api refused, in its own words. `status` is HTTP's; 0 when nothing answered."""

    def __init__(
        self, message: str, status: int = 0, problem: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem or {}


class Unreachable(TorporError):
    """Nothing answers at the address, or no longer."""


class NotCompleted(TorporError):
    """The job ended, but not well: `job` says how."""

    def __init__(self, job: "Job") -> None:
        reason = (job.data.get("error") or {}).get("message", "no reason given")
        super().__init__(f"the job {job.id} ended as {job.state}: {reason}")
        self.job = job


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the api shows it; `data` is all of it."""

    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.data["id"])

    @property
    def state(self) -> str:
        """`queued`, `in_progress`, `completed`, `failed` or `cancelled`."""
        return str(self.data["state"])

    @property
    def is_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def text(self) -> str:
        """The first answer's text; empty until there is one."""
        choices = (self.data.get("result") or {}).get("choices") or [{}]
        message = choices[0].get("message") or {}
        return str(message.get("content") or choices[0].get("text") or "")


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of a job's life: `state`, `waking`, `attempt`, `tokens` or `result`. `cursor` is
    what `stream(job_id, after=cursor)` goes on from.
    """

    name: str
    data: Mapping[str, Any]
    cursor: str = ""

    @property
    def text(self) -> str:
        """The new text of a `tokens` event, without what the model thinks before it answers."""
        choices = (self.data.get("delta") or []) if self.name == "tokens" else []
        return "".join(
            (choice.get("delta") or {}).get("content") or choice.get("text") or ""
            for choice in choices
        )


class SubmitOptions(TypedDict, total=False):
    """What may be said beside the prompt. `body` holds more fields of the OpenAI call."""

    model: str
    system: str
    body: Mapping[str, Any]
    endpoint: str
    priority: str
    metadata: Mapping[str, str]
    webhook: str
    expires_after_s: float
    idempotency_key: str


def api_key(text: str) -> str:
    """The key as a header carries it; a line break at its end is an editor's. Raises `ValueError`."""
    key = text.strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise ValueError("the key holds a blank, a line break or a character outside ASCII")
    return key


class AsyncClient:
    """One session with an api. `url` and `key` come from TORPOR_API_URL and TORPOR_API_KEY unless
    they are given. Raises `ValueError` for a key that no header can carry.
    """

    def __init__(self, url: str = "", *, key: str = "", patience_s: float = 60.0) -> None:
        self.url = (url or os.environ.get("TORPOR_API_URL", "") or DEFAULT_URL).rstrip("/")
        self._key = api_key(key or os.environ.get("TORPOR_API_KEY", ""))
        self._patience_s = patience_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the jobs go on."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def submit(self, prompt: str | Sequence[Any], **options: Unpack[SubmitOptions]) -> Job:
        """Submit a job: a text, or a list of chat messages. A call that is cut off is sent again
        under the same key, so the job is made once.
        """
        line = job_line(prompt, options)
        if not line["body"].get("model"):
            line["body"]["model"] = await self._first_model()
        key = options.get("idempotency_key") or uuid.uuid4().hex
        for left in reversed(range(_SUBMIT_TRIES)):
            try:
                return Job(await self.call("POST", "/v1/jobs", body=line, idempotency_key=key))
            except Unreachable as error:
                if not left or isinstance(error.__cause__, aiohttp.ClientConnectorError):
                    raise
        raise AssertionError("the last try has returned or raised")

    async def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return Job(await self.call("GET", f"/v1/jobs/{job_id}"))

    async def cancel(self, job_id: str) -> Job:
        """Cancel it; one that has ended stays as it is."""
        return Job(await self.call("DELETE", f"/v1/jobs/{job_id}"))

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The completed job. Raises `NotCompleted` for another end, and TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                query = {"wait": str(_LONGEST_WAIT_S)}
                job = Job(await self._patient_call("GET", f"/v1/jobs/{job_id}", query))
                if job.is_ended:
                    break
        if job.state != "completed":
            raise NotCompleted(job)
        return job

    async def stream(self, job_id: str, *, after: str = "") -> AsyncIterator[JobEvent]:
        """The events of a job's life to its end, those after a cursor if one is given."""
        cursor, since = after, _now()
        while True:
            try:
                async for event in self._events(job_id, cursor):
                    cursor, since = event.cursor or cursor, _now()
                    place = event.data.get("links", {}).get("result")
                    if place and event.data.get("result") is None:  # too long for an event
                        result = await self.call("GET", place)
                        event = replace(event, data={**event.data, "result": result})
                    yield event
                    if event.name == "result":
                        return
            except Unreachable:
                if _now() - since > self._patience_s:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> Any:
        """The JSON that the api answers. Raises `TorporError` with its reason otherwise."""
        headers = {"content-type": "application/json"} if body is not None else {}
        if idempotency_key:
            headers["idempotency-key"] = idempotency_key
        data = orjson.dumps(body) if body is not None else None
        content = await self.call_raw(method, path, data=data, query=query, headers=headers)
        return orjson.loads(content) if content else None

    async def call_raw(
        self,
        method: str,
        path: str,
        *,
        data: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The bytes that the api answers; `data` may be a form. Raises as `call`."""
        try:
            async with self._open().request(
                method, self.url + path, data=data, params=query, headers=headers, timeout=_CALL
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        if answer.status >= 400:
            raise _refusal(answer.status, content)
        return content

    async def _patient_call(self, method: str, path: str, query: Mapping[str, str]) -> Any:
        """As `call`, over a restart of the api."""
        deadline = _now() + self._patience_s
        while True:
            try:
                return await self.call(method, path, query=query)
            except TorporError as error:
                is_away = isinstance(error, Unreachable) or error.status in _AWAY
                if not is_away or _now() > deadline:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def _first_model(self) -> str:
        served = (await self.call("GET", "/v1/models"))["data"]
        if not served:
            raise TorporError(f"no model is served at {self.url}")
        return str(served[0]["id"])

    async def _events(self, job_id: str, cursor: str) -> AsyncIterator[JobEvent]:
        """Of one connection. Raises `Unreachable` when it is lost, or the api is away."""
        headers = {"last-event-id": cursor} if cursor else {}
        path = f"{self.url}/v1/jobs/{job_id}/events"
        try:
            async with self._open().get(path, headers=headers, timeout=_STREAM) as answer:
                if answer.status in _AWAY:
                    raise Unreachable(f"the api answered {answer.status}", answer.status)
                if answer.status >= 400:
                    raise _refusal(answer.status, await answer.read())
                async for sent in server_sent_events(answer.content.iter_any()):
                    yield JobEvent(sent.name, orjson.loads(sent.data), sent.id)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
            self._session = aiohttp.ClientSession(headers=headers)
        return self._session

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"nothing answers at {self.url} ({type(error).__name__})")


class Client:
    """The same, blocking: one event loop in a thread, so that it works in a notebook too."""

    def __init__(self, url: str = "", *, key: str = "", patience_s: float = 60.0) -> None:
        self._client = AsyncClient(url, key=key, patience_s=patience_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and the loop; the jobs go on."""
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, prompt: str | Sequence[Any], **options: Unpack[SubmitOptions]) -> Job:
        return self._run(self._client.submit(prompt, **options))

    def get(self, job_id: str) -> Job:
        return self._run(self._client.get(job_id))

    def cancel(self, job_id: str) -> Job:
        return self._run(self._client.cancel(job_id))

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        return self._run(self._client.wait(job_id, timeout_s))

    def stream(self, job_id: str, *, after: str = "") -> Iterator[JobEvent]:
        events = self._client.stream(job_id, after=after)
        with suppress(StopAsyncIteration):
            while True:
                yield self._run(_next(events))

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def job_line(prompt: str | Sequence[Any], options: SubmitOptions) -> dict[str, Any]:
    """The body of `POST /v1/jobs`."""
    endpoint = options.get("endpoint", "/v1/chat/completions")
    body: dict[str, Any] = dict(options.get("body") or {})
    if model := options.get("model"):
        body["model"] = model
    if endpoint == "/v1/chat/completions":
        said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        system = options.get("system")
        body["messages"] = [{"role": "system", "content": system}, *said] if system else said
    else:
        body["input" if endpoint in ("/v1/embeddings", "/v1/responses") else "prompt"] = prompt
    line: dict[str, Any] = {"url": endpoint, "body": body}
    for name in ("priority", "metadata", "webhook"):
        if value := options.get(name):
            line[name] = value
    if seconds := options.get("expires_after_s"):
        line["expires_after"] = seconds
    return line


def _refusal(status: int, content: bytes) -> TorporError:
    """The api's own words (RFC 9457), with the field they are about."""
    problem: dict[str, Any] = {}
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(content)
        problem = found if isinstance(found, dict) else {}
    inner = problem.get("error") if isinstance(problem.get("error"), dict) else {}
    words = problem.get("detail") or problem.get("title") or (inner or {}).get("message")
    text = str(words or f"the api answered {status}")
    where = problem.get("field")
    return TorporError(
        f"{text} [{where}]" if where and where not in text else text, status, problem
    )


async def _next(events: AsyncIterator[JobEvent]) -> JobEvent:
    return await anext(events)


def _now() -> float:
    return asyncio.get_running_loop().time()
