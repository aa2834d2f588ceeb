"""Settings that every process of one store must agree on, read from `TORPOR_*` variables.

The settings classes of api, broker and predictor inherit from this class: each of these processes ends jobs, takes
over leases or keeps records, so a value set for only one of them would apply to only some of the jobs.
"""

import ssl
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventing.errors import BadRequest
from eventing.job.cache.cache import CacheRules, load_cache_rules
from eventing.job.capability import Capability
from eventing.job.pipelines.audit import AuditRules, load_audit_rules
from eventing.job.pipelines.document import load_pipelines
from eventing.job.pipelines.fallback import NO_FALLBACKS, Fallbacks, load_fallbacks
from eventing.job.plan import EMBED_STEP, MODERATE_STEP, NO_PIPELINES, Pipelines, Plan, tiers_of
from eventing.job.store import LeaseSettings
from eventing.job.tools.document import load_tools
from eventing.job.tools.sealed import SealingKeys
from eventing.job.tools.server import NO_TOOLS, ToolConfig
from eventing.process.setting import HttpUrl, Token, token_file
from eventing.store.conversation.policy import STEP as MEMORY
from eventing.store.conversation.policy import memory_policy
from eventing.telemetry.cost import Price, Prices, TokenPrice


class StoreSettings(BaseSettings):
    """Retention of jobs, and the time limit of a store call."""

    model_config = SettingsConfigDict(env_prefix="TORPOR_", frozen=True, extra="ignore")

    store_timeout_s: float = Field(1.5, ge=0.05, le=30)
    """Longest wait for one reply of the store."""
    store_acks: int = Field(0, ge=0, le=8)
    """Replicas of the store that must have a new job before its 202, an event before the broker accepts it, and a
    result before its delivery is acked; while they are away, calls get 503. 0 waits for none, and a failover may lose
    what was accepted just before it.
    """
    lease_s: float = Field(30.0, ge=0.5, le=3600)
    """How long a predictor keeps a job without renewing its lease; leases are renewed at a third of it."""
    max_attempts: int = Field(3, ge=1, le=100)
    """Lost or failed attempts after which a job becomes a dead letter."""
    retention_s: int = Field(24 * 3600, ge=60)
    """How long ended jobs are kept."""
    dead_letter_retention_s: int = Field(14 * 24 * 3600, ge=60)
    """How long dead letters are kept."""
    pipelines_file: Path | None = None
    """YAML with an entry for each public model name that has a plan of steps, cached answers or a fallback
    (docs/pipelines.md).
    Api, broker and steps need the same.
    """
    tools_file: Path | None = None
    """YAML with the tool servers that jobs may call (docs/tools.md). Api, broker and steps need the same."""

    @cached_property
    def plans(self) -> Pipelines:
        """The plans in that file; none without one."""
        return load_pipelines(self.pipelines_file) if self.pipelines_file else NO_PIPELINES

    @cached_property
    def cache_rules(self) -> CacheRules:
        """The rules of cached answers in that file; none without one."""
        return load_cache_rules(self.pipelines_file) if self.pipelines_file else {}

    @cached_property
    def audit_rules(self) -> AuditRules:
        """The rules of audits in that file; none without one."""
        return load_audit_rules(self.pipelines_file) if self.pipelines_file else {}

    @cached_property
    def fallbacks(self) -> Fallbacks:
        """The models in that file that another stands in for; none without one."""
        return load_fallbacks(self.pipelines_file) if self.pipelines_file else NO_FALLBACKS

    @cached_property
    def tools(self) -> ToolConfig:
        """The tool servers in that file; none without one."""
        return load_tools(self.tools_file) if self.tools_file else NO_TOOLS

    @field_validator("tools_file")
    @classmethod
    def _check_tools(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                load_tools(path)
            except BadRequest as error:
                raise ValueError(error.message) from error
        return path

    @field_validator("pipelines_file")
    @classmethod
    def _check_pipelines(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                for plan in load_pipelines(path).values():
                    if step := plan.step(MEMORY):
                        memory_policy(step.settings)
                load_cache_rules(path)
                load_audit_rules(path)
                load_fallbacks(path)
            except BadRequest as error:
                raise ValueError(error.message) from error
        return path

    @property
    def lease(self) -> LeaseSettings:
        """These settings as the store's `LeaseSettings`."""
        return LeaseSettings(
            lease_ms=int(self.lease_s * 1000),
            max_attempts=self.max_attempts,
            retention_s=self.retention_s,
            dead_letter_retention_s=self.dead_letter_retention_s,
            acks=self.store_acks,
        )


class BrokerClientSettings(StoreSettings):
    """How a process that sends the events of jobs reaches the broker."""

    broker_url: HttpUrl = "http://127.0.0.1:8081/"
    """Ingress of the broker: ours or a Knative Broker's."""
    queue_triggers_file: Path | None = None
    """The Trigger manifests of the embedded broker, when its queues are in `redis_url`: the api then writes events
    to the queues itself, and `broker_url` is not used.
    """
    broker_timeout_s: float = Field(5.0, gt=0.1, le=60)
    """Longest wait for an external broker to accept an event; no submit waits for it."""
    broker_event_limit_bytes: int = Field(0, ge=0)
    """Largest event that the external broker accepts, checked at submit (413); 0 when it is not known."""
    broker_token: Token = SecretStr("")
    """Bearer token for the broker; empty sends none."""
    broker_token_file: Path | None = None
    """File with that token, read for each event: Kubernetes rotates projected tokens."""
    broker_ca_file: Path | None = None
    """PEM file of the authorities for an https broker's certificate; empty uses the system's."""

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


class SealingSettings(BrokerClientSettings):
    """How a process seals, or opens, the credentials that requests bring for their tool servers."""

    tool_seal_key_file: FilePath | None = None
    """Key by which credentials that a request brings for its tool servers are sealed: 32 bytes as base64, a line a
    key, the newest first. Api and steps need the same. Without one such credentials are refused.
    """

    @cached_property
    def sealing_keys(self) -> SealingKeys | None:
        """The keys in `tool_seal_key_file`."""
        return SealingKeys.read(self.tool_seal_key_file) if self.tool_seal_key_file else None

    @field_validator("tool_seal_key_file")
    @classmethod
    def _check_seal(cls, path: Path | None) -> Path | None:
        if path is not None:
            SealingKeys.read(path)
        return path


class ModelCard(BaseModel):
    """A model that is served, as far as the api needs to know it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:/@-]+$")]
    """The `model` of a request."""
    context_tokens: Annotated[int, Field(ge=1)] = 2048
    """Longest prompt plus answer; a prompt that alone is longer is refused when it is submitted."""
    tokenizer_file: Path | None = None
    """`tokenizer.json` for an exact count; without it only prompts given as token ids are counted."""
    input_price_per_1m: Annotated[float, Field(ge=0)] = 0.0
    """What its provider takes for a million tokens of prompts, in your currency; 0 for a model of your own."""
    cached_input_price_per_1m: Annotated[float, Field(ge=0)] | None = None
    """The same of tokens that the provider had in its cache; `input_price_per_1m` where none is set."""
    output_price_per_1m: Annotated[float, Field(ge=0)] = 0.0
    """What its provider takes for a million tokens of answers."""
    capabilities: frozenset[Capability] | None = None
    """What it can: `generate`, `embed`, `moderate`, `image`, `audio`, `video`, `tools`. A call that asks for something
    else is refused when it is submitted; where none are listed, the engine judges.
    """


EMBEDDER_CONTEXT: Final = 256
"""Tokens that the packaged embedding model reads of a text."""


MODERATOR_CONTEXT: Final = 1_000_000
"""Tokens of the texts of one moderation: rules read texts of any length, and a guard model gets them in pieces."""


def _planned_card(name: str, plan: Plan, listed: Mapping[str, ModelCard]) -> ModelCard | None:
    """The card of a public name: of the step that answers it, or of the models that it chooses among, which
    can together what each of them can.
    """
    if plan.step(EMBED_STEP):
        return ModelCard(
            name=name, context_tokens=EMBEDDER_CONTEXT, capabilities=frozenset({Capability.EMBED})
        )
    if plan.step(MODERATE_STEP):
        return ModelCard(
            name=name,
            context_tokens=MODERATOR_CONTEXT,
            capabilities=frozenset({Capability.MODERATE}),
        )
    tiers = [listed[each] for each in tiers_of(plan) if each in listed]
    if not tiers:
        return None
    known = [card.capabilities for card in tiers if card.capabilities is not None]
    return max(tiers, key=lambda card: card.context_tokens).model_copy(
        update={
            "name": name,
            "capabilities": frozenset().union(*known) if len(known) == len(tiers) else None,
            "input_price_per_1m": max(card.input_price_per_1m for card in tiers),
            "output_price_per_1m": max(card.output_price_per_1m for card in tiers),
            "cached_input_price_per_1m": None,
        }
    )


class PriceSettings(StoreSettings):
    """The models that are served, and the prices of their answers."""

    models: tuple[ModelCard, ...] = ()
    """JSON list of model cards; a model that is not listed is unknown."""
    gpu_price_per_hour: float = Field(0.0, ge=0, le=1000)
    """Price of a GPU-hour in your currency; 0 shows GPU-seconds without money."""
    gpus_per_replica: int = Field(1, ge=1, le=64)
    """GPUs of one predictor."""

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """The models that are served: those listed, and public names whose plan needs no predictor of that name."""
        listed = {card.name: card for card in self.models}
        others = [
            card
            for name, plan in self.plans.items()
            if name not in listed and (card := _planned_card(name, plan, listed))
        ]
        return (*self.models, *others)

    @property
    def price(self) -> Price:
        """The price of a predictor."""
        return Price(per_gpu_hour=self.gpu_price_per_hour, gpus=self.gpus_per_replica)

    @property
    def token_prices(self) -> dict[str, TokenPrice]:
        """The prices of the models that have one, by name; of a public name over several, the highest of theirs."""
        return {
            card.name: TokenPrice(
                input_per_1m=card.input_price_per_1m,
                output_per_1m=card.output_price_per_1m,
                cached_input_per_1m=card.cached_input_price_per_1m,
            )
            for card in self.cards
            if card.input_price_per_1m or card.output_price_per_1m
        }

    @property
    def prices(self) -> Prices:
        """All of them."""
        return Prices(self.price, self.token_prices)
