"""A careful client: one Idempotency-Key a job, the same key on every retry. All its calls go into the history."""

import asyncio
import time
from itertools import count
from typing import Any

import aiohttp

from eventing.job.job import JobId
from tests.faults.history import History, Kind


def body(seed: int, *, tokens: int = 12, prompt: str = "why?", **knobs: Any) -> dict[str, Any]:
    """A job line for the test engine."""
    return {
        "url": "/v1/chat/completions",
        "body": {
            "model": "seeded",
            "messages": [{"role": "user", "content": prompt}],
            "seed": seed,
            "seeded": {"output_tokens": tokens} | knobs,
        },
    }


class Client:
    """Submits, reads and cancels over HTTP, at each api of `bases` in turn."""

    def __init__(self, history: History, *bases: str) -> None:
        self._history = history
        self.bases = list(bases)
        self.headers: dict[str, str] = {}
        """On every call, a credential for instance."""
        self._calls = count(1)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def _base(self) -> str:
        self.bases.append(self.bases.pop(0))
        return self.bases[0]

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=10)
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(
                timeout=timeout, connector=connector, headers=self.headers
            )
        return self._session

    async def submit_once(self, line: dict[str, Any], key: str, **noted: Any) -> JobId | None:
        """One try; the job when it was accepted."""
        call = f"c{next(self._calls)}"
        note = {"call": call, "key": key, "body": str(line)} | noted
        self._history.add(Kind.INVOKE, "submit", **note)
        try:
            async with self._http().post(
                f"{self._base}/v1/jobs", json=line, headers={"idempotency-key": key}
            ) as answer:
                content = await answer.json()
                retry_after = answer.headers.get("retry-after", "")
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            is_sent = not isinstance(error, aiohttp.ClientConnectorError)
            self._history.add(Kind.UNKNOWN, "submit", is_sent=is_sent, **note)
            return None
        if status in (200, 202):
            self._history.add(Kind.OK, "submit", job_id=content["id"], status=status, **note)
            return JobId(content["id"])
        self._history.add(Kind.FAIL, "submit", status=status, retry_after=retry_after, **note)
        return None

    async def submit(
        self,
        line: dict[str, Any],
        key: str,
        *,
        within_s: float = 60,
        pause_s: float = 0.05,
        **noted: Any,
    ) -> JobId:
        """Try until it is accepted. Raises `TimeoutError` when it never is."""
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            job_id = await self.submit_once(line, key, **noted)
            if job_id is not None:
                return job_id
            await asyncio.sleep(pause_s)
        raise TimeoutError(f"{key} was never accepted")

    async def get(self, job_id: str, query: str = "") -> tuple[int, dict[str, Any]]:
        """Status and body of a look at a job."""
        async with self._http().get(f"{self._base}/v1/jobs/{job_id}{query}") as answer:
            found = await answer.json()
            if answer.status == 200:
                self._history.add(Kind.SEEN, "state", job_id=job_id, state=found["state"])
            return answer.status, found

    async def cancel(self, job_id: str) -> str:
        """The state that the answer to a cancel tells."""
        self._history.add(Kind.INVOKE, "cancel", job_id=job_id)
        async with self._http().delete(f"{self._base}/v1/jobs/{job_id}") as answer:
            found = await answer.json()
        state = str(found["state"])
        self._history.add(Kind.OK, "cancel", job_id=job_id, state=state)
        return state
