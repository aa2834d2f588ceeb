"""Settings of the api, read once at start from `TORPOR_*` variables.

Called by `api.__main__` and by tests, which pass fields as arguments.
"""

from enum import StrEnum

import orjson
from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, field_validator

from api.webhook.schedule import SCHEDULE_S
from eventing.process.egress import allow_list
from eventing.process.setting import FilesUrl, HttpUrl, LogLevel, OptionalHttpUrl, RedisUrl, Token
from eventing.settings import PriceSettings, SealingSettings
from eventing.telemetry.usage import LONGEST_KEPT_DAYS


class AnonymousAccess(StrEnum):
    """Whether calls without a credential are allowed when no kind of credential is configured."""

    OFF = "off"  #: never
    LOOPBACK = "loopback"  #: on a loopback address only
    ANYWHERE = "anywhere"  #: on every address


class TenantLimits(BaseModel):
    """The limits of one tenant; a field that is not set has the general value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(None, ge=0)
    tokens_per_minute: int | None = Field(None, ge=0)
    jobs_in_flight: int | None = Field(None, ge=0)
    file_bytes: int | None = Field(None, ge=0)
    budget_per_month: float | None = Field(None, ge=0)
    soft_budget_per_month: float | None = Field(None, ge=0)
    models: tuple[str, ...] | None = None


class ApiSettings(SealingSettings, PriceSettings):
    """One process of the api. Every field is a variable: `redis_url` is `TORPOR_REDIS_URL`."""

    host: str = "127.0.0.1"
    """Address to bind; loopback by default."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to bind."""
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    """Redis or Valkey that holds jobs and token streams; may carry a password."""
    max_unpublished: int = Field(10_000, ge=1)
    """Number of unpublished events for an external broker above which submits are answered 503."""
    body_limit_bytes: int = Field(1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest body of a call, as sent and as decoded. A file upload has its own limit."""
    body_timeout_s: float = Field(5.0, gt=0, le=300)
    """Longest time for a request body, plus a second for each 16 KiB of it; a slower sender gets 408."""
    event_limit_bytes: int = Field(8 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest CloudEvent accepted; a result can be larger than a request."""
    file_limit_bytes: int = Field(200 * 1024 * 1024, ge=1024)
    """Largest upload of a batch file; streamed to `files_url`, never held in memory."""
    files_url: FilesUrl = "file://.torpor/files"
    """Storage of files, batch results and results above 64 KiB, as an fsspec URL (file://, s3://, gs://); all api
    processes need the same.
    """
    submit_timeout_s: float = Field(1.8, gt=0.1, le=30)
    """Longest time of a submit while store or broker are unavailable, before it is answered 503."""
    store_timeout_s: float = Field(1.0, gt=0.1, le=30)
    """Longest wait for one reply of the store; shorter than elsewhere, since a caller waits for the api."""
    keep_alive_s: float = Field(10.0, gt=0.01, le=300)
    """Interval of keep-alive comments on an idle stream, so that proxies keep it open."""
    sync_timeout_s: float = Field(3600.0, gt=0, le=7 * 24 * 3600)
    """Longest time that a plain (not streamed, not background) OpenAI call is held open."""
    max_wait_s: float = Field(60.0, gt=0, le=300)
    """Largest `?wait=` of a poll."""
    sweep_every_s: float = Field(5.0, gt=0.01, le=30)
    """Pause between two sweeps of the outbox."""
    open_connections: int = Field(10_000, ge=10, le=1_000_000)
    """Largest number of open connections; a waiting one costs about 10 KiB, one that streams about 50."""
    max_connections: int = Field(32, ge=2, le=1024)
    """Connections to the store for calls; live readers share one more."""
    keys_source: str = ""
    """Source of API keys: `redis` (made with `torpor keys`), or a JSON file of key records."""
    oidc_issuer: OptionalHttpUrl = ""
    """Identity provider whose bearer tokens are accepted; empty for none."""
    oidc_audience: str = ""
    """The audience that such a token must have."""
    oidc_jwks_url: OptionalHttpUrl = ""
    """Address of its public keys; discovered from the issuer when empty."""
    oidc_tenant_claim: str = "tenant"
    """The claim that names the tenant."""
    oidc_scope_claim: str = "scope"
    """The claim that lists scopes, as text or a list."""
    anonymous_access: AnonymousAccess = AnonymousAccess.OFF
    """Allow calls without a credential when neither `keys_source` nor `oidc_issuer` is set: `loopback` only while
    `host` is a loopback address, `anywhere` on every address.
    """
    delivery_token: Token = SecretStr("")
    """Bearer token that the broker's deliveries must carry; empty requires none on loopback."""
    metrics_open: bool = False
    """Serve /metrics without a credential; otherwise it needs a key with the scope metrics:read, or, when `host` is
    a loopback address, a caller on this host.
    """
    cors_origins: tuple[str, ...] = ()
    """JSON list of origins (`["http://localhost:3000"]`, or `["*"]`) whose pages may call from a browser; none by
    default.
    """
    event_origins: tuple[str, ...] = ()
    """JSON list of senders (or `["*"]`) that may send CloudEvents after asking by OPTIONS, as Event Grid does."""
    drop_unsupported_tools: bool = False
    """Leave hosted tools, which cannot run here (`web_search`, `custom` ...), out of a response's call, as Codex and
    the AI SDK send them, instead of refusing it.
    """
    response_socket_s: float = Field(3600.0, gt=0, le=24 * 3600)
    """Longest a WebSocket of `/v1/responses` is used; the specification says 60 minutes."""
    limit_requests_per_minute: int = Field(0, ge=0)
    """Calls other than GET that a tenant may make a minute; 0 for no limit, here and below."""
    limit_tokens_per_minute: int = Field(0, ge=0)
    """Tokens that a tenant may request a minute: an estimate of the prompt, and `max_tokens`."""
    limit_jobs_in_flight: int = Field(0, ge=0)
    """Jobs of a tenant that have not ended."""
    limit_open_streams: int = Field(2_000, ge=0)
    """Streams (SSE and WebSockets) that a tenant may have open at one process."""
    limit_file_bytes: int = Field(10 * 1024 * 1024 * 1024, ge=0)
    """Total size of a tenant's files, including results of batches; 0 for no limit."""
    limit_budget_per_month: float = Field(0.0, ge=0)
    """What a tenant's jobs may cost in a calendar month (UTC), in your currency: GPU time at `gpu_price_per_hour`, and
    tokens at the prices of the model cards. Over it, calls are answered 429.
    """
    limit_soft_budget_per_month: float = Field(0.0, ge=0)
    """When a tenant's jobs have cost so much in a month, it is told, once, by the event `budget.soft.passed`; answers
    carry the header `Torpor-Budget`. 0: at `budget_warn_share` of its budget.
    """
    budget_warn_share: float = Field(0.8, gt=0, le=1)
    """The soft budget of a budget that has none of its own, as a share of it."""
    limit_queue_depth: int = Field(0, ge=0)
    """Jobs of all tenants that may wait for a model."""
    tenant_limits: dict[str, TenantLimits] = Field(default_factory=dict)
    """JSON object of limits by tenant, where they differ from the ones above."""
    moved_tenants: dict[str, HttpUrl] = Field(default_factory=dict)
    """JSON object of tenants, `*` for all others, and the address of the cell where their new jobs go: here they are
    answered 503 with that address, and jobs that were accepted run to their end (docs/scale.md).
    """
    webhook_allow: tuple[str, ...] = ()
    """JSON list of internal networks and hosts that webhooks may reach (`["10.1.0.0/16", "*.corp.example"]`); any
    other target must be public and https.
    """
    webhook_timeout_s: float = Field(15.0, gt=0, le=30)
    """Longest wait for a receiver's answer; Standard Webhooks suggests 15 to 30 s."""
    webhook_schedule_s: tuple[float, ...] = SCHEDULE_S
    """JSON list of the pause before each try of a webhook; the default is documented in webhooks.md."""
    cold_start_seconds: int = Field(600, ge=1, le=3600)
    """Longest that a predictor takes to start. A model of which no attempt began for twice as long while jobs waited
    trips to its fallback, if it has one (docs/pipelines.md).
    """
    cpu_price_per_hour: float = Field(0.0, ge=0, le=1000)
    """Price of an hour of a CPU core of api and store; 0 shows CPU-seconds without money."""
    currency: str = Field("usd", pattern=r"^[a-z]{3}$")
    """The currency of all prices and budgets, as ISO 4217 has it, in small letters."""
    usage_days: int = Field(100, ge=1, le=LONGEST_KEPT_DAYS)
    """For how many days what tenants used is kept, by day, API key and model."""
    audit_golden_file: FilePath | None = None
    """JSON lines `{passages, question, answer, supported}` by which critics of answers are measured; at least 200. A
    packaged set of general knowledge without one.
    """
    audit_least_waiting: int = Field(20, ge=1, le=10_000)
    """Audits that wake a critic that is asleep; fewer wait until it is awake."""
    audit_gpu_share: float = Field(0.03, ge=0, le=1)
    """Largest share of the GPU time that audits take, with their part of the critic's idle time and starts."""
    audit_window_days: int = Field(30, ge=1, le=90)
    """Days of audited jobs that a rate is made of."""
    approvals_by_another_key: bool = False
    """A call of a tool is approved with another API key than that which asked for its job."""
    log_level: LogLevel = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""

    @field_validator("webhook_allow")
    @classmethod
    def _check_allow(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        allow_list(entries)
        return entries

    def masked(self) -> bytes:
        """All settings as JSON, with secrets and the store's password masked."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
