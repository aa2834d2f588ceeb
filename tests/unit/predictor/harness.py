"""A predictor's deliveries on the test engine and the store in memory, for unit tests."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson

from eventing.clock import SystemClock
from eventing.cloudevent.event import Event, build_binary
from eventing.cloudevent.job_event import REQUESTED, job_of
from eventing.errors import StoreUnavailable
from eventing.job.job import JobId, derive_job_id
from eventing.job.store import (
    ARRIVED,
    Ending,
    Lease,
    LeaseSettings,
    LeaseStatus,
    Publication,
    TokenBatch,
)
from eventing.job.stream import EntryKind, StreamEntry
from eventing.store.memory_store import MemoryStore
from predictor.delivery.admission import Admission
from predictor.delivery.answer import DeliveryResponse
from predictor.delivery.delivery import Deliveries
from predictor.delivery.lease import LeaseKeeper
from predictor.engine.engine import EngineRequest
from predictor.engine.seeded_engine import SeededEngine, SeededSettings
from predictor.generation.replay_filter import coalesce, entries_of

SOURCE = "/tests/producer"
CHAT = "/v1/chat/completions"
TEN = {"output_tokens": 10}
LONG = {"output_tokens": 2000, "tokens_per_s": 100}


class AdvancedClock(SystemClock):
    """The clock of this host, `ahead_ms` later."""

    ahead_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms


class UnreliableStore(MemoryStore):
    """The store in memory, behind a network that a test can break."""

    def __init__(self, settings: LeaseSettings | None = None) -> None:
        self.clock = AdvancedClock()
        super().__init__(settings, self.clock)
        self.is_away = False
        self.lost_answers = 0
        self.failing_ends = 0
        self.has_foreign_token = False
        self.appended: list[TokenBatch] = []

    def _reach(self) -> None:
        if self.is_away:
            raise StoreUnavailable("the store does not answer")

    async def append_all(self, appends: Sequence[tuple[Lease, TokenBatch]]) -> list[LeaseStatus]:
        self._reach()
        hold = await super().append_all(appends)
        self.appended += [batch for _, batch in appends]
        if self.lost_answers:
            self.lost_answers -= 1
            raise StoreUnavailable("the answer was lost")
        return hold

    async def create_and_make(self, event: Event, count: int) -> None:
        """Leave `count` tokens behind, as an attempt of another process that died then."""
        engine = SeededEngine(SeededSettings(tokens_per_s=0, prefill_tokens_per_s=0))
        await engine.start(lambda _: None)
        new = job_of(event)
        job, _ = await self.submit(new)
        acquired = await self.acquire(job.id, "dead", can_resume=True)
        request = EngineRequest("r", job.request.url, job.request.body)
        index = 0
        async with aclosing(engine.run(request, ())) as steps:
            async for step in steps:
                if not step.token_ids:
                    continue
                assert step.chunk is not None
                shown = orjson.dumps(coalesce(entries_of(step.chunk))).decode()
                batch = TokenBatch(index=index, token_ids=step.token_ids, delta=shown)
                await self.append_all([(acquired.lease, batch)])
                index += 1
                if index == count:
                    break

    async def acquire_again(self, job_id: JobId, *, restart: bool) -> Lease:
        """The next attempt of a job whose lease has lapsed."""
        self._lapse(job_id)
        return (await self.acquire(job_id, "another", can_resume=not restart)).lease

    def lapse(self, event: Event) -> None:
        """Whoever held the job has been silent for a lease."""
        self._lapse(job_id_of(event))

    def _lapse(self, job_id: JobId) -> None:
        record = self._records[job_id]
        record.job = replace(record.job, lease_until_ms=1)

    def evict_stream(self, event: Event) -> None:
        """Lose the token stream, as a store short of memory may."""
        self._records[job_id_of(event)].entries.clear()

    async def overtake(self, event: Event) -> None:
        """Let the lease lapse and give the job to somebody else."""
        await self.acquire_again(job_id_of(event), restart=False)

    async def finish(self, lease: Lease, ending: Ending) -> LeaseStatus:
        self._reach()
        if self.failing_ends:
            self.failing_ends -= 1
            raise StoreUnavailable("the store does not answer")
        if self.has_foreign_token:
            self._records[lease.job_id].append(TokenBatch(index=0, token_ids=(9,)), self._now())
        return await super().finish(lease, ending)

    async def renew(self, leases: Any, *, extend: bool) -> list[LeaseStatus]:
        self._reach()
        return await super().renew(leases, extend=extend)

    async def submit(self, new: Any, publication: Publication = ARRIVED) -> Any:
        self._reach()
        return await super().submit(new, publication)

    async def reject(self, new: Any, error: Any, raw: bytes) -> bool:
        self._reach()
        return await super().reject(new, error, raw)


@dataclass(slots=True)
class Harness:
    """Everything between a delivery and the engine."""

    engine: SeededEngine
    store: UnreliableStore
    admission: Admission
    keeper: LeaseKeeper
    deliveries: Deliveries

    async def deliver(self, event: Event, prefer: str = "reply") -> DeliveryResponse:
        headers, body = build_binary(event)
        return await self.deliveries.handle({**headers, "prefer": prefer}, body)

    async def entries(self, event: Event) -> list[StreamEntry]:
        return await self.store.read_stream(job_id_of(event))

    async def wait_tokens(self, event: Event, count: int) -> None:
        """Return once `count` tokens of the event's job are checkpointed."""
        while True:
            job = await self.store.get(job_id_of(event))
            if job is not None and job.token_count >= count:
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def open_harness(
    *,
    tokens_per_s: float = 0,
    max_concurrency: int = 4,
    lease_s: float = 30.0,
    max_attempts: int = 3,
    stall_s: float = 60.0,
    flush_s: float = 0.01,
    watch_s: float = 0.05,
    store: UnreliableStore | None = None,
    is_store_shared: bool = True,
    owner: str = "p1",
    is_open: bool = True,
    engine_type: type[SeededEngine] = SeededEngine,
    running: Any = None,
) -> AsyncIterator[Harness]:
    """Deliveries that are served; the lease keeper runs beside it. `running` is an engine that does already
    and goes on.
    """
    engine = running or engine_type(
        SeededSettings(
            tokens_per_s=tokens_per_s, prefill_tokens_per_s=0, max_concurrency=max_concurrency
        )
    )
    if not running:
        await engine.start(lambda _: None)
    store = store or UnreliableStore(
        LeaseSettings(lease_ms=int(lease_s * 1000), max_attempts=max_attempts)
    )
    admission = Admission(engine)
    if is_open:
        admission.open()
    clock = SystemClock()
    keeper = LeaseKeeper(store, clock, lease_s=lease_s, watch_s=watch_s, stall_s=stall_s)
    deliveries = Deliveries(
        engine=engine,
        store=store,
        admission=admission,
        keeper=keeper,
        clock=clock,
        owner=owner,
        lease_s=lease_s,
        flush_s=flush_s,
        is_store_shared=is_store_shared,
    )
    rounds = asyncio.ensure_future(keeper.run())
    try:
        yield Harness(engine, store, admission, keeper, deliveries)
    finally:
        rounds.cancel()
        await asyncio.wait((rounds,))
        if not running:
            await engine.stop()


def asking(
    text: str = "why do birds sleep",
    *,
    event_id: str = "e1",
    url: str = CHAT,
    seeded: Mapping[str, Any] | None = None,
    extensions: Mapping[str, str] | None = None,
    **body: Any,
) -> Event:
    """A request event of a producer of events."""
    prompt = {"messages": [{"role": "user", "content": text}]} if url == CHAT else {"prompt": text}
    call = {"model": "seeded", **prompt, **body}
    if seeded is not None:
        call["seeded"] = dict(seeded)
    return event_of({"url": url, "body": call}, event_id=event_id, extensions=extensions)


def event_of(
    data: Any, *, event_id: str = "e1", extensions: Mapping[str, str] | None = None, **given: str
) -> Event:
    """An event around any data."""
    attributes = {"type": REQUESTED, "datacontenttype": "application/json", **given}
    return Event(
        id=event_id,
        source=SOURCE,
        extensions=dict(extensions or {}),
        data=data if isinstance(data, bytes) else orjson.dumps(data),
        **attributes,
    )


def job_id_of(event: Event) -> JobId:
    return derive_job_id(event.source, event.id)


def data_of(answer: DeliveryResponse) -> dict[str, Any]:
    """What the result event in an answer says."""
    assert answer.event is not None
    data: dict[str, Any] = orjson.loads(answer.event.data)
    return data


def text_of(answer: DeliveryResponse) -> str:
    choice = data_of(answer)["response"]["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def read_text(entries: list[StreamEntry], channel: str = "content") -> str:
    """What a reader of the token stream has in front of it."""
    text = ""
    for entry in entries:
        if entry.kind is EntryKind.ATTEMPT and entry.index == 0:
            text = ""
        for shown in orjson.loads(entry.delta) if entry.delta else ():
            text += shown.get("delta", shown).get(channel) or ""
    return text


def read_ids(entries: list[StreamEntry]) -> list[int]:
    """Token ids in order. Fails where an index is skipped or comes twice."""
    ids: list[int] = []
    for entry in entries:
        if entry.kind is EntryKind.ATTEMPT and entry.index == 0:
            ids.clear()
        if entry.kind is EntryKind.TOKENS:
            assert entry.index == len(ids)
            ids += entry.token_ids
    return ids
