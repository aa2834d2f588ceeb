"""The values that a deployment is rendered from.

Read by `render` and the command line. Knows no Kubernetes objects; `timeouts` derives the timeouts from these
values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from yarl import URL

from eventing.errors import BadRequest, InvalidJob
from eventing.job.cache.cache import parse_cache_rules
from eventing.job.capability import Capability
from eventing.job.pipelines.audit import check_critics, parse_audit_rules
from eventing.job.pipelines.document import check_served, parse_pipelines
from eventing.job.pipelines.fallback import check_fallbacks, parse_fallbacks
from eventing.job.plan import Pipelines, tiers_of
from eventing.job.tools.document import parse_tools
from eventing.job.tools.server import DEFAULT_TIMEOUT_MS, ToolConfig
from eventing.process.egress import AllowList, check_url
from eventing.process.once_loader import OnceLoader
from eventing.process.setting import HttpUrl

_LABEL = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
_HOST = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_URI = r"^(hf|s3|gs|pvc|https|oci|azure)://\S+$"
_BUCKET = r"^$|^s3://\S+$"
_CRON = r"^\S+( \S+){4}$"
DnsLabel = Annotated[str, Field(pattern=_LABEL)]
HostName = Annotated[str, Field(pattern=_HOST)]
StorageUri = Annotated[str, Field(pattern=_URI)]
SecretName = Annotated[str, Field(pattern=_HOST)]
# Error messages in place of a regular expression.
_IN_WORDS = {
    _LABEL: "must be lower-case letters, digits and dashes, 40 at most, a letter first",
    _HOST: "must be a host name alone: no https://, no path, no port",
    _URI: "must begin with hf://, s3://, gs://, pvc://, https://, oci:// or azure://",
    _BUCKET: "must be a folder in a bucket: s3://BUCKET/FOLDER",
    _CRON: "must be five fields as cron has them: 17 * * * *",
}


class ValuesError(ValueError):
    """The values file is invalid; the message names each field and what it must be."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_boolean(cls, value: object, info: ValidationInfo) -> object:
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and wanted is not bool:
            raise ValueError("must not be true or false; YAML reads yes, no, on and off as that")
        return value


class FallbackValues(_Section):
    """What is asked when a provider fails: another endpoint or, without `url`, a model of this installation."""

    url: HttpUrl | None = None
    model: str = Field(min_length=1, max_length=128)
    secret: SecretName | None = None
    cache_salt: bool = False


class UpstreamValues(_Section):
    """A provider's endpoint as the engine of a model: neither GPU nor weights."""

    url: HttpUrl
    model: str = Field(min_length=1, max_length=128)  # its name there
    secret: SecretName | None = None  # its key `key` is the provider's
    tenants: tuple[str, ...] = Field(min_length=1)  # whose data may leave the cluster; "*": all
    fallbacks: tuple[FallbackValues, ...] = ()
    hedges: bool = False
    cache_salt: bool = False  # it is vLLM: tenants find nothing of each other's in its prefix cache
    networks: tuple[IPv4Network | IPv6Network, ...] = ()  # where it is, if not on public addresses
    input_price_per_1m: float = Field(0, ge=0)
    output_price_per_1m: float = Field(0, ge=0)
    cached_input_price_per_1m: float | None = Field(None, ge=0)

    @property
    def urls(self) -> tuple[str, ...]:
        """Its endpoint, and those of others that stand in for it."""
        return (self.url, *(each.url for each in self.fallbacks if each.url))

    @property
    def allowed(self) -> tuple[str, ...]:
        """The hosts and networks inside that it may be at."""
        if not self.networks:
            return ()
        hosts = dict.fromkeys(str(URL(url).host) for url in self.urls)
        return (*hosts, *map(str, self.networks))

    @model_validator(mode="after")
    def _may_be_called(self) -> Self:
        try:
            for url in self.urls:
                check_url(url, AllowList.parse(self.allowed), "url")
        except InvalidJob as error:
            raise ValueError(f"{error.message} (or say in networks where it is)") from error
        return self

    @property
    def own_models(self) -> tuple[str, ...]:
        """The models of this installation that stand in for it."""
        return tuple(each.model for each in self.fallbacks if each.url is None)


class ModelValues(_Section):
    """The served model and its batch size."""

    # 40 characters at most: KServe adds "-predictor", Knative a revision of up to 12 more, and the
    # whole has to stay a DNS label of 63.
    name: DnsLabel = "thinker"
    uri: StorageUri = "hf://Qwen/Qwen3-8B"
    cpu_uri: StorageUri = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"
    max_tokens: int = Field(32768, ge=256, le=2_000_000)
    concurrency: int = Field(16, ge=1, le=1000)  # Knative's containerConcurrency ends at 1000
    size_gib: int = Field(16, ge=1, le=4096)
    # What the api lets through; None: the engine judges, which wakes it.
    capabilities: frozenset[Capability] | None = None
    # How fast one replica is; read by the component work-scaler alone.
    prefill_tokens_per_s: float = Field(5000, ge=0.1, le=1e7)
    decode_tokens_per_s: float = Field(500, ge=0.1, le=1e7)
    upstream: UpstreamValues | None = None  # instead of weights


class MoreModel(ModelValues):
    """Another model behind the same api and broker; on the same kind of GPU, or a provider's."""

    name: DnsLabel
    max_replicas: int | None = Field(None, ge=1, le=1000)  # None: as the first model's

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if ("uri" in self.model_fields_set) == (self.upstream is not None):
            raise ValueError("needs a uri of weights, or an upstream; not both")
        return self


class GpuValues(_Section):
    """The hardware of one replica and its price. The same for all models: the api has one price."""

    count: int = Field(1, ge=1, le=16)
    product: str = Field("NVIDIA-L40S", pattern=r"^[A-Za-z0-9._-]{1,63}$")
    price_per_hour: float = Field(1.95, ge=0, le=1000)


class ImageValues(_Section):
    """The container images. Tags or digests: `tag: 0.1.0` or `tag: sha256:...`."""

    repository: str = Field("registry.example.com/torpor", min_length=1)
    tag: str = Field("0.1.0", pattern=r"^[A-Za-z0-9._:-]+$")
    # The newest line that the store's Lua and the KEDA runs were tried on.
    valkey: str = Field("docker.io/valkey/valkey:9.1.0", pattern=r"(:[^/:]+|@sha256:[0-9a-f]{64})$")

    @field_validator("tag", "valkey")
    @classmethod
    def _is_pinned(cls, value: str) -> str:
        if value == "latest" or value.endswith(":latest"):
            raise ValueError("must be a version or a digest: `latest` is another image tomorrow")
        return value

    def reference(self, name: str) -> str:
        """Give the full image reference of one of our images."""
        sign = "@" if self.tag.startswith("sha256:") else ":"
        return f"{self.repository}/{name}{sign}{self.tag}"


class PlatformValues(_Section):
    """Versions of the cluster's platforms; defaults are the releases that the manifests are checked against."""

    kserve: str = Field("0.20", pattern=r"^0\.\d+$")
    keda: str = Field("2.20", pattern=r"^2\.\d+$")
    prometheus_url: str = Field(
        "http://prometheus-operated.monitoring.svc.cluster.local:9090", pattern=r"^https?://\S+$"
    )
    files_url: str = "file:///var/lib/torpor/files"  # batch files: or s3://, gs://
    storage_class: str | None = None  # None: the cluster's default
    ingress_class: str = "nginx"
    direct_token_secret: str = Field(
        "", pattern=rf"^$|{_LABEL}"
    )  # a Secret's name; its key is `token`


class StoreValues(_Section):
    """Redis: one server, or three that fail over by sentinels; and where its backups go."""

    replicas: Literal[1, 3] = 1
    backup_url: str = Field("", pattern=_BUCKET)  # our api image has S3's client
    backup_schedule: str = Field("17 * * * *", pattern=_CRON)
    backups_kept: int = Field(48, ge=1, le=10_000)


class StepsValues(_Section):
    """The process of the steps before the predictor; with `max_replicas` 0 there is none."""

    max_replicas: int = Field(0, ge=0, le=1000)
    concurrency: int = Field(32, ge=1, le=1000)
    timeout_seconds: int = Field(30, ge=1, le=3600)  # of one run of a step
    retries: int = Field(10, ge=0, le=20)
    memory: str = Field("1Gi", pattern=r"^[1-9][0-9]*(Mi|Gi)$")


class Values(_Section):
    """All values that the operator sets. Every timeout is derived from them."""

    max_job_seconds: int = Field(1800, ge=10, le=86_400)
    cold_start_seconds: int = Field(600, ge=5, le=3600)
    p95_wait_seconds: int = Field(60, ge=1, le=86_400)
    batch_wait_seconds: int = Field(0, ge=0, le=604_800)
    model: ModelValues = ModelValues()
    gpu: GpuValues = GpuValues()
    images: ImageValues = ImageValues()
    platform: PlatformValues = PlatformValues()
    max_replicas: int = Field(4, ge=1, le=1000)
    host: HostName = "torpor.example.com"
    namespace: DnsLabel = "torpor"
    more_models: tuple[MoreModel, ...] = ()
    store: StoreValues = StoreValues()
    steps: StepsValues = StepsValues()
    pipelines: dict[str, Any] = Field(
        default_factory=dict
    )  # as `pipelines.yaml`: docs/pipelines.md
    tools: dict[str, Any] = Field(default_factory=dict)  # as `tools.yaml`: docs/tools.md

    @property
    def plans(self) -> Pipelines:
        """The plan of each model that has one."""
        return parse_pipelines(self.pipelines)

    @property
    def tool_config(self) -> ToolConfig:
        """The servers of tools."""
        return parse_tools(self.tools)

    @model_validator(mode="after")
    def _tools_have_steps(self) -> Self:
        try:
            has_tools = bool(self.tool_config.queues)
        except BadRequest as error:
            raise ValueError(error.message) from error
        if has_tools and not self.steps.max_replicas:
            raise ValueError("tools need steps: set steps.max_replicas")
        longest_ms = max(self.max_job_seconds * 1000, DEFAULT_TIMEOUT_MS)
        for label, server in self.tool_config.servers.items():
            if server.timeout_ms > longest_ms:
                where = f"tools: servers.{label}.timeout_ms"
                raise ValueError(f"{where} must be at most max_job_seconds: its job ends then")
        return self

    @model_validator(mode="after")
    def _pipelines_are_of_models(self) -> Self:
        try:
            plans = self.plans
            names = {self.model.name, *(more.name for more in self.more_models)}
            audits = parse_audit_rules(self.pipelines)
            check_served(plans, {**parse_cache_rules(self.pipelines), **audits}, names)
            check_critics(audits, names)
            check_fallbacks(parse_fallbacks(self.pipelines), names)
        except BadRequest as error:
            raise ValueError(error.message) from error
        if self.pipelines and not self.steps.max_replicas:
            raise ValueError("pipelines need steps: set steps.max_replicas")
        return self

    @model_validator(mode="after")
    def _fallbacks_end(self) -> Self:
        names = {self.model.name, *(more.name for more in self.more_models), *self.plans}
        providers = {m.name: m.upstream for m in (self.model, *self.more_models) if m.upstream}
        asked = {name: tiers_of(plan) for name, plan in self.plans.items()}
        asked |= {name: upstream.own_models for name, upstream in providers.items()}
        for provider, upstream in providers.items():
            if strange := [name for name in upstream.own_models if name not in names]:
                raise ValueError(f"{provider} falls back to {strange[0]}, which is no model here")
            if way := way_back(provider, asked):
                raise ValueError(f"fallbacks lead back to where they began: {' -> '.join(way)}")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [self.model.name, *(more.name for more in self.more_models)]
        for name in names:
            if names.count(name) > 1 or f"{name}-canary" in names:
                raise ValueError(f"model names must differ, and NAME-canary is taken: {name}")
        return self

    def each_engine(self) -> tuple[Values, ...]:
        """Give the values as each model with weights of its own sees them."""
        return tuple(each for each in self.each() if each.model.upstream is None)

    def each(self) -> tuple[Values, ...]:
        """Give the values as each model sees them, the first one first."""
        own = (self.model_copy(update={"more_models": ()}),)
        return own + tuple(
            self.model_copy(
                update={
                    "model": more,
                    "max_replicas": more.max_replicas or self.max_replicas,
                    "more_models": (),
                }
            )
            for more in self.more_models
        )


def way_back(start: str, asked: Mapping[str, Sequence[str]]) -> list[str]:
    """Give the way that leads from a name back to itself, by the names that each one asks; empty without one."""
    ways, seen = [[start]], {start}
    while ways:
        way = ways.pop()
        for name in asked.get(way[-1], ()):
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def load_values(path: Path) -> Values:
    """Give the values of a file.

    Raises ValuesError with one line per wrong field (name, what was given, what is allowed), or
    when the file is missing or not a mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), OnceLoader)  # noqa: S506  a safe one
    except OSError as error:
        raise ValuesError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValuesError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValuesError(f"{path}: must be a mapping of values")
    try:
        return Values.model_validate(data)
    except ValidationError as error:
        lines = [f"{path}: {_explained(each)}" for each in error.errors()]
        raise ValuesError("\n".join(lines)) from error


def _explained(error: ErrorDetails) -> str:
    """Give one invalid value in words: its name, what it must be, what was given."""
    *parents, last = (str(step) for step in error["loc"]) if error["loc"] else ("values",)
    message = error["msg"].removeprefix("Value error, ")
    match error["type"]:
        case "extra_forbidden":
            near = get_close_matches(last, _names(), n=1)
            message = "is no value here" + (f"; did you mean {near[0]}?" if near else "")
        case "string_pattern_mismatch":
            message = _IN_WORDS.get(error["ctx"]["pattern"], message)
        case "tuple_type":
            message = "must be a list"
    return f"{'.'.join([*parents, last])}: {message} (got {error['input']!r})"


def _names() -> list[str]:
    return [name for section in _Section.__subclasses__() for name in section.model_fields]
