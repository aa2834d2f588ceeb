"""Settings of one predictor process, read once at start from `TORPOR_*` variables.

Called by `python -m predictor`; command line flags take precedence. Names that the api and the broker also use
(`port`, `host`) are prefixed here, because in the local stack all of them have the same environment.
"""

import os
import socket
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from eventing.process.egress import allow_list
from eventing.process.setting import HttpUrl, LogLevel, OptionalHttpUrl, RedisUrl, Token
from eventing.settings import StoreSettings


class EngineKind(StrEnum):
    """The kinds of engines."""

    VLLM = "vllm"  #: vLLM
    UPSTREAM = "upstream"  #: an OpenAI-compatible endpoint of a provider
    SEEDED = "seeded"  #: tokens from a seed, for tests


class UpstreamFallback(BaseModel):
    """A provider's model that stands in for the first one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: HttpUrl
    model: str = Field(min_length=1)
    key_file: Path | None = None
    cache_salt: bool = False


def _default_replica_id() -> str:
    """The host name (in a pod, the pod's name) and the process id."""
    return f"{socket.gethostname()}-{os.getpid()}"


class PredictorSettings(StoreSettings):
    """One predictor. Every field is a variable: `lease_s` is `TORPOR_LEASE_S`."""

    engine: EngineKind = EngineKind.VLLM
    """The engine; `seeded` needs no model."""
    model: str = "smollm2-135m-instruct"
    """The model that vLLM loads: a packaged one, a folder, or a name on a hub."""
    model_name: str = ""
    """The name that requests use in `model`; empty uses the name of the loaded model."""
    model_revision: str = Field("", max_length=200)
    """Names the weights: a kept answer is served only under the revision that gave it. Empty uses `model` itself, so
    set it where other weights come under the same name.
    """
    models_dir: Path = Path(".torpor/models")
    """Folder of converted models; a persistent volume saves converting again."""
    replica_id: str = Field(default_factory=_default_replica_id, min_length=1, max_length=253)
    """This predictor's id in leases and in the replica directory."""

    predictor_host: str = "0.0.0.0"  # noqa: S104 (KServe's probes and queue-proxy come from outside)
    """Address to bind; the embedded stack binds loopback."""
    predictor_port: int = Field(8080, ge=0, le=65535)
    """HTTP port; KServe's default."""
    grpc_port: int = Field(0, ge=0, le=65535)
    """gRPC port of the v2 protocol; 0 leaves gRPC off."""
    grpc_host: str = "127.0.0.1"
    """Address that gRPC binds. It has no encryption: expose it deliberately."""
    delivery_token: Token = SecretStr("")
    """Bearer token that deliveries must carry; empty requires none."""

    direct_token: Token = SecretStr("")
    """Bearer token for direct routes: OpenAI's calls, predict, infer, models, `/metrics`, gRPC. Empty requires
    none.
    """
    direct_routes: bool | None = None
    """Whether direct routes are served. Unset: yes, except on Knative Serving without a `direct_token`, where a
    gateway may lead to this process.
    """
    direct_body_limit_bytes: int = Field(8 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest body of a direct call."""

    redis_url: RedisUrl = SecretStr("")
    """Redis or Valkey that holds the jobs; empty keeps them in memory, without live tokens for others and without
    resumption after a crash.
    """

    flush_ms: int = Field(50, ge=1, le=100)
    """Longest time from a token's generation to its checkpoint; a crash loses no more than that."""
    watch_ms: int = Field(500, ge=10, le=900)
    """Interval at which running jobs are compared with their records; a cancel is seen within it."""
    stall_s: float = Field(120.0, ge=0.1, le=3600)
    """A job whose engine gives no token for this long, prefill included, is aborted."""
    drain_grace_s: float = Field(25.0, ge=0.5, le=3600)
    """From SIGTERM to the exit; jobs that cannot end in time are handed over 4 s before. Must be below the pod's
    grace period.
    """

    upstream_url: OptionalHttpUrl = ""
    """Engine `upstream`: the provider's address, with its version: `https://HOST/v1`."""
    upstream_model: str = ""
    """The model's name at the provider; empty uses `model_name`."""
    upstream_key_file: Path | None = None
    """File with the provider's key, read for each call."""
    upstream_cache_salt: bool = False
    """The endpoint is vLLM, say behind a router of prefixes: each call has a `cache_salt` of its tenant, and its
    `prompt_cache_key`, as a hash within the tenant. Other providers may refuse the field.
    """
    upstream_fallbacks: tuple[UpstreamFallback, ...] = ()
    """JSON list of endpoints that are asked, in order, while the first one's breaker is open or when it failed before
    it showed anything: `[{"url": "https://HOST/v1", "model": "NAME", "key_file": "PATH", "cache_salt": false}]`.
    """
    upstream_hedges: bool = False
    """Ask the next endpoint as well when the first token is later than nearly all usual ones, for at most 6 % of the
    calls that are answered; the first to show something answers.
    """
    upstream_tenants: tuple[str, ...] = ()
    """Tenants whose data may leave the cluster to the provider, a JSON list; `["*"]` for all, also for direct
    calls. Empty: none, and the engine does not start.
    """
    upstream_allow: tuple[str, ...] = ()
    """Internal hosts and networks that the provider's address may lead to; others must be public, and https."""
    upstream_max_concurrency: int = Field(64, ge=1, le=4096)
    """Calls at once to the provider, of this process."""
    upstream_context_tokens: int = Field(131_072, ge=16)
    """Tokens that the provider's model takes, prompt and answer together."""

    seeded_tokens_per_s: float = Field(50.0, ge=0)
    """Test engine: tokens a second of each request; 0 is as fast as possible."""
    seeded_prefill_tokens_per_s: float = Field(2000.0, ge=0)
    """Test engine: prompt tokens a second."""
    seeded_start_up_s: float = Field(0.0, ge=0)
    """Test engine: duration of loading."""
    seeded_max_concurrency: int = Field(16, ge=1, le=4096)
    """Test engine: its useful batch."""
    seeded_max_model_len: int = Field(4096, ge=16)
    """Test engine: tokens of prompt and answer together."""

    log_level: LogLevel = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""

    @field_validator("upstream_allow")
    @classmethod
    def _check_allow(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        allow_list(entries)
        return entries

    @property
    def revision(self) -> str:
        """What the weights are known by."""
        loaded = {EngineKind.VLLM: self.model, EngineKind.UPSTREAM: self.upstream_model}
        return self.model_revision or loaded.get(self.engine, self.served_name)

    @property
    def served_name(self) -> str:
        """The model's name in requests."""
        if self.model_name or self.engine is EngineKind.VLLM:
            return self.model_name or self.model
        return self.upstream_model if self.engine is EngineKind.UPSTREAM else "seeded"

    @property
    def grpc_address(self) -> str:
        """HOST:PORT of gRPC; empty when it is off."""
        host = f"[{self.grpc_host}]" if ":" in self.grpc_host else self.grpc_host
        return f"{host}:{self.grpc_port}" if self.grpc_port else ""

    @property
    def serves_direct_routes(self) -> bool:
        """As set, or by the platform: Knative sets `K_SERVICE` in its containers."""
        if self.direct_routes is not None:
            return self.direct_routes
        return bool(self.direct_token.get_secret_value()) or "K_SERVICE" not in os.environ

    @property
    def store_wait_s(self) -> float:
        """Longest wait for one reply of the store: three tries must fit into a lease."""
        return min(self.store_timeout_s, self.lease_s / 3)
