"""What every handler may use, put together once: the api's parts, injected.

Called by `api.__main__` (builds it) and `api.routes.route` (hands it to handlers). Must not know any
route.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import HTTPConnection

from api.auth.principal import AnonymousAuthenticator, Authenticator, Principal
from api.batch.batch import Batch
from api.batch.file_store import FileStore
from api.http.body_limiter import BodyRoom
from api.job.catalog import Catalog
from api.job.concurrency_limiter import ConcurrencyLimiter
from api.job.idempotency import Replay
from api.job.result_feed import ResultFeed
from api.settings import ApiSettings
from api.webhook.service import WebhookService
from eventing.clock import Clock, SystemClock
from eventing.cloudevent.publisher import Publisher
from eventing.errors import NotFound, Unavailable
from eventing.job.job import Job, JobId
from eventing.job.store import NewJob, Store, StreamEntry
from eventing.live.replica import Replica
from eventing.live.stream_multiplexer import TokenCallback
from eventing.outbox.published import PublishedJobs
from eventing.telemetry.metric.ledger import Ledger


class LiveReader(Protocol):
    """A follower of one job's token stream (`eventing.live.stream_multiplexer.Reader`)."""

    cursor: str

    async def next(self, timeout_s: float) -> list[StreamEntry]: ...

    async def catch_up(self) -> list[StreamEntry]: ...


class Live(Protocol):
    """Where token streams are followed (`eventing.live.stream_multiplexer.StreamMultiplexer`)."""

    def follow(
        self, job_id: JobId, after: str = "", tap: TokenCallback | None = None
    ) -> AbstractAsyncContextManager[LiveReader]: ...


class Ends(Protocol):
    """Where ends of jobs are heard of (`eventing.live.completion_notifier.CompletionNotifier`)."""

    def expecting(self, job_id: JobId) -> AbstractContextManager[asyncio.Event]:
        """An event that is set when the job's record should be looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What can be said to somebody whose job waits. Empty fields are not known."""

    position: int | None = None
    expected_wait_s: float | None = None
    phase: str = ""
    phase_since_ms: int = 0
    replicas: int | None = None


class Waiting(Protocol):
    """Tells where a queued job stands."""

    async def outlook(self, job: Job) -> Outlook | None:
        """What is known now; None when nothing is, or the job does not wait."""

    async def replicas(self, model: str) -> Sequence[Replica]:
        """The model's replicas, the oldest first."""


class PastWaking(Protocol):
    """Tells what a job that has ended waited for (`api.job.waiting.WakingNotes`)."""

    async def of(self, job: Job) -> list[dict[str, Any]]: ...


class Intake(Protocol):
    """The short way in for a job that nobody can have sent before (`eventing.broker.intake`)."""

    async def take(self, new: NewJob) -> Job:
        """The job, recorded and on its way. When it raises `StoreUnavailable`, it may be either."""


class Admission(Protocol):
    """The seam of limits and backpressure: asked once for every job before it is recorded."""

    async def admit(self, principal: Principal, new: NewJob) -> None:
        """Return to let it in; raise what should be answered instead."""

    async def on_admitted(self, new: NewJob, job: Job, is_new: bool) -> None:
        """It was let in and is recorded as `job`; not `is_new` for one that was there before."""

    async def on_rejected(self, tenant: str, job_id: JobId) -> None:
        """It was let in, and nothing came of it."""


class Gate(Protocol):
    """The seam of request limits: asked for every call, once it is known who calls."""

    async def enter(self, principal: Principal, method: str) -> None:
        """Return to let the call in; raise what should be answered instead."""


class Overview(Protocol):
    """Tells what a console shows: queues and replicas."""

    async def look(self) -> dict[str, Any]:
        """Queues and replicas of every model, as JSON."""


class ResultListener(Protocol):
    """The seam of webhooks: told of every ended job, at least once."""

    async def ended(self, job: Job) -> None:
        """Return once it cannot be forgotten; raise `Unavailable` to be told again."""


class Batches(Protocol):
    """Where batches are recorded (`api.batch.store.BatchStore`)."""

    async def create(self, batch: Batch) -> Batch: ...

    async def get(self, batch_id: str, tenant: str | None = None) -> Batch: ...

    async def list(self, tenant: str) -> Sequence[Batch]: ...

    async def ask_to_cancel(self, batch_id: str) -> None: ...


class PollingNotifier:
    """`Ends` where nobody listens: a look is due at once, and then now and then."""

    @contextmanager
    def expecting(self, job_id: JobId) -> Iterator[asyncio.Event]:
        news = asyncio.Event()
        news.set()
        yield news


class NoBatches:
    """`Batches` where nothing keeps them."""

    async def create(self, batch: Batch) -> Batch:
        raise Unavailable("this api keeps no batches", 3600.0)

    async def get(self, batch_id: str, tenant: str | None = None) -> Batch:
        raise NotFound("no such batch")

    async def list(self, tenant: str) -> Sequence[Batch]:
        return ()

    async def ask_to_cancel(self, batch_id: str) -> None:
        raise NotFound("no such batch")


class NobodyKnows:
    """`Waiting` without a queue to look at."""

    async def outlook(self, job: Job) -> Outlook | None:
        return None

    async def replicas(self, model: str) -> Sequence[Replica]:
        return ()


class OpenGate:
    """`Gate` without limits."""

    async def enter(self, principal: Principal, method: str) -> None:
        return None


class AdmitAll:
    """`Admission` without limits."""

    async def admit(self, principal: Principal, new: NewJob) -> None:
        return None

    async def on_admitted(self, new: NewJob, job: Job, is_new: bool) -> None:
        return None

    async def on_rejected(self, tenant: str, job_id: JobId) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The parts of one api process."""

    settings: ApiSettings
    store: Store
    publisher: Publisher
    intake: Intake | None = None
    published: PublishedJobs = field(default_factory=PublishedJobs)
    live: Live
    ends: Ends = field(default_factory=PollingNotifier)
    catalog: Catalog
    waiting: Waiting = field(default_factory=NobodyKnows)
    authenticator: Authenticator = field(default_factory=AnonymousAuthenticator)
    admission: Admission = field(default_factory=AdmitAll)
    gate: Gate = field(default_factory=OpenGate)
    listeners: tuple[ResultListener, ...] = ()
    webhooks: WebhookService | None = None
    overview: Overview | None = None
    ledger: Ledger | None = None
    results: ResultFeed | None = None
    past_waking: PastWaking | None = None
    replay: Replay | None = None
    files: FileStore = field(default_factory=lambda: FileStore("memory://torpor"))
    batches: Batches = field(default_factory=NoBatches)
    turnstile: ConcurrencyLimiter = field(default_factory=ConcurrencyLimiter)
    body_room: BodyRoom = field(default_factory=BodyRoom)
    clock: Clock = field(default_factory=SystemClock)


def front_of(connection: HTTPConnection) -> Front:
    """The parts of the application that serves `connection`."""
    front: Front = connection.app.state.front
    return front
