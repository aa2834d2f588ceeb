"""Settings of the api, read once at start from `TORPOR_*` variables.

Called by `api.__main__` and by tests, which pass fields as arguments.
"""

import ssl
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import fsspec  # type: ignore[import-untyped]
import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from api.webhook.address import allow_list
from api.webhook.schedule import SCHEDULE_S
from eventing.job.capability import Capability
from eventing.process.setting import HttpUrl, LogLevel, OptionalHttpUrl, RedisUrl, Token, token_file
from eventing.settings import StoreSettings
from eventing.telemetry.cost import Price


class AnonymousAccess(StrEnum):
    """Whether callers without a credential are served, where none is configured."""

    OFF = "off"  #: never
    LOOPBACK = "loopback"  #: while only this machine can reach us
    ANYWHERE = "anywhere"  #: whoever can reach us


class ModelCard(BaseModel):
    """A model that predictors serve, as far as the api must know it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:/@-]+$")]
    """What callers put into `model`."""
    context_tokens: Annotated[int, Field(ge=1)] = 2048
    """Longest prompt plus answer; a prompt that alone is longer is refused when it is submitted."""
    tokenizer_file: Path | None = None
    """`tokenizer.json` for an exact count; without it only prompts given as token ids are
    counted.
    """
    capabilities: frozenset[Capability] | None = None
    """What it can: `generate`, `embed`, `image`, `audio`, `video`, `tools`. A call that asks for something else is
    refused when it is submitted; where none are listed, the engine judges.
    """


class TenantLimits(BaseModel):
    """What one tenant may; what is not named is as for everybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(None, ge=0)
    tokens_per_minute: int | None = Field(None, ge=0)
    jobs_in_flight: int | None = Field(None, ge=0)
    file_bytes: int | None = Field(None, ge=0)


class ApiSettings(StoreSettings):
    """One process of the api. Every field is a variable: `redis_url` is `TORPOR_REDIS_URL`."""

    host: str = "127.0.0.1"
    """Address to bind; loopback unless told otherwise."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to bind."""
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    """Redis or Valkey that holds jobs and token streams; may carry a password."""
    broker_url: HttpUrl = "http://127.0.0.1:8081/"
    """Ingress of the broker: ours or a Knative Broker's."""
    queue_triggers_file: Path | None = None
    """The Trigger manifests of our own broker, where its queues lie in `redis_url`: the api then
    puts events into them itself, by the same triggers, and `broker_url` is not asked.
    """
    broker_timeout_s: float = Field(5.0, gt=0.1, le=60)
    """Longest wait until a broker that is not ours has taken an event; no submit waits for it."""
    broker_event_limit_bytes: int = Field(0, ge=0)
    """Largest event that such a broker takes, for a 413 at the submit; 0 when it is not known."""
    max_unpublished: int = Field(10_000, ge=1)
    """Jobs whose event such a broker has yet to take, above which submits are answered 503."""
    broker_token: Token = SecretStr("")
    """Bearer token for the broker; empty sends none."""
    broker_token_file: Path | None = None
    """File with that token, read anew for each event: Kubernetes rotates what it projects."""
    broker_ca_file: Path | None = None
    """PEM file of the authorities that an https broker's certificate is checked against; none means
    the system's.
    """
    models: tuple[ModelCard, ...] = ()
    """JSON list of model cards; a model that is not listed is unknown here."""
    body_limit_bytes: int = Field(1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest body of a call, as sent and as decoded. A file upload has its own limit."""
    body_timeout_s: float = Field(5.0, gt=0, le=300)
    """Longest time for a body, and a second more for each 16 KiB of it; a slower sender gets 408.
    """
    event_limit_bytes: int = Field(8 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest CloudEvent taken; a result can be larger than a request."""
    file_limit_bytes: int = Field(200 * 1024 * 1024, ge=1024)
    """Largest upload of a batch file; written through to `files_url`, never held in memory."""
    files_url: str = "file://.torpor/files"
    """Where files and batch results lie, as fsspec names it (file://, s3://, gs://)."""
    submit_timeout_s: float = Field(1.8, gt=0.1, le=30)
    """Longest a submit takes with store or broker down before it is answered 503 (promise: 2 s)."""
    store_timeout_s: float = Field(1.0, gt=0.1, le=30)
    """Longest wait for one answer of the store; shorter here, since a caller waits for the api."""
    keep_alive_s: float = Field(10.0, gt=0.01, le=300)
    """A comment goes out on a silent stream this often, so that proxies keep it open."""
    sync_timeout_s: float = Field(3600.0, gt=0, le=7 * 24 * 3600)
    """Longest a plain (not streamed, not background) OpenAI call is held open."""
    max_wait_s: float = Field(60.0, gt=0, le=300)
    """Largest `?wait=` of a poll."""
    sweep_every_s: float = Field(5.0, gt=0.01, le=30)
    """Pause between two looks at the outbox."""
    open_connections: int = Field(10_000, ge=10, le=1_000_000)
    """Connections held open at once; one that waits costs about 10 KiB, one that streams 50."""
    max_connections: int = Field(32, ge=2, le=1024)
    """Connections to the store for calls; live readers share one more."""
    keys_source: str = ""
    """Where API keys are: `redis` (made with `torpor keys`), or a JSON file of key records."""
    oidc_issuer: OptionalHttpUrl = ""
    """Identity provider whose bearer tokens are good; empty for none."""
    oidc_audience: str = ""
    """What such a token must be meant for."""
    oidc_jwks_url: OptionalHttpUrl = ""
    """Where its public keys are; discovered from the issuer when empty."""
    oidc_tenant_claim: str = "tenant"
    """The claim that names the tenant."""
    oidc_scope_claim: str = "scope"
    """The claim that lists scopes, as text or a list."""
    anonymous_access: AnonymousAccess = AnonymousAccess.OFF
    """Serve callers without a credential, where neither `keys_source` nor `oidc_issuer` is set:
    `loopback` while `host` is an address of this machine alone, `anywhere` on every address.
    """
    delivery_token: Token = SecretStr("")
    """Bearer token that the broker's deliveries must carry; empty asks for none on loopback."""
    metrics_open: bool = False
    """Let everybody read /metrics; else a key with the scope metrics:read, or who is on loopback where `host` is."""
    cors_origins: tuple[str, ...] = ()
    """JSON list of origins (`["http://localhost:3000"]`, or `["*"]`) whose pages may call from a
    browser; none by default.
    """
    event_origins: tuple[str, ...] = ()
    """JSON list of senders (or `["*"]`) that may send CloudEvents after asking by OPTIONS, as
    Event Grid does.
    """
    drop_unsupported_tools: bool = False
    """Leave tools that nobody here can run (`web_search`, `custom` ...) out of a response's call, as Codex and the
    AI SDK send them, instead of refusing it.
    """
    response_socket_s: float = Field(3600.0, gt=0, le=24 * 3600)
    """Longest a WebSocket of `/v1/responses` is used; the specification says 60 minutes."""
    limit_requests_per_minute: int = Field(0, ge=0)
    """Calls but GET a tenant may make a minute; 0 for no limit, as in the next ones."""
    limit_tokens_per_minute: int = Field(0, ge=0)
    """Tokens a tenant may ask for a minute: an estimate of the prompt, and `max_tokens`."""
    limit_jobs_in_flight: int = Field(0, ge=0)
    """Jobs of a tenant that have not ended."""
    limit_open_streams: int = Field(2_000, ge=0)
    """Streams of a tenant that may be open at one process: SSE and WebSockets."""
    limit_file_bytes: int = Field(10 * 1024 * 1024 * 1024, ge=0)
    """Bytes that a tenant's files may take, results of batches among them; 0 for no limit."""
    limit_queue_depth: int = Field(0, ge=0)
    """Jobs that may wait for a model, of all tenants."""
    tenant_limits: dict[str, TenantLimits] = Field(default_factory=dict)
    """JSON object of limits by tenant, where they differ from the ones above."""
    webhook_allow: tuple[str, ...] = ()
    """JSON list of networks and hosts inside that webhooks may reach (`["10.1.0.0/16",
    "*.corp.example"]`); everything else must be public and https.
    """
    webhook_timeout_s: float = Field(15.0, gt=0, le=30)
    """Longest wait for a receiver's answer; Standard Webhooks suggests 15 to 30 s."""
    webhook_schedule_s: tuple[float, ...] = SCHEDULE_S
    """JSON list of the pause before each try of a webhook; the default is the published one."""
    gpu_price_per_hour: float = Field(0.0, ge=0, le=1000)
    """What a GPU costs an hour, in your currency; 0 shows GPU-seconds without money."""
    gpus_per_replica: int = Field(1, ge=1, le=64)
    """GPUs of one predictor."""
    log_level: LogLevel = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""

    @property
    def price(self) -> Price:
        """What a predictor costs."""
        return Price(per_gpu_hour=self.gpu_price_per_hour, gpus=self.gpus_per_replica)

    @field_validator("webhook_allow")
    @classmethod
    def _check_allow(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        allow_list(entries)
        return entries

    @field_validator("broker_token_file")
    @classmethod
    def _check_token(cls, path: Path | None) -> Path | None:
        if path is not None:
            token_file(path)
        return path

    @field_validator("broker_ca_file")
    @classmethod
    def _check_authorities(cls, path: Path | None) -> Path | None:
        try:
            if path is not None:
                ssl.create_default_context(cafile=path)
        except OSError as error:  # SSLError is one
            raise ValueError(f"cannot read {path} as PEM: {error.strerror or error}") from error
        return path

    @field_validator("files_url")
    @classmethod
    def _check_files(cls, url: str) -> str:
        scheme, is_url, _ = url.partition("://")
        try:
            if is_url:
                fsspec.get_filesystem_class(scheme)
        except (ValueError, ImportError) as error:
            raise ValueError(str(error)) from error
        return url

    def masked(self) -> bytes:
        """All settings as JSON, secrets and the password of the store masked."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
