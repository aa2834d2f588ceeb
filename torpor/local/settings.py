"""Settings of the embedded stack: one frozen value, from flags of `torpor up` or `TORPOR_*`
variables.
"""

import os
import re
import shlex
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Self

import yaml
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.config import JsonDict
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from eventing.errors import BadRequest
from eventing.job.cache.cache import load_cache_rules
from eventing.job.pipelines.audit import check_critics, load_audit_rules
from eventing.job.pipelines.document import check_served, load_pipelines
from eventing.job.pipelines.fallback import check_fallbacks, load_fallbacks
from eventing.job.plan import NO_PIPELINES, Pipelines
from eventing.job.tools.document import load_tools
from eventing.job.tools.server import NO_TOOLS, ToolConfig
from eventing.process.setting import http_url
from eventing.process.setting import redis_url as checked_redis_url
from torpor.local.engine_kind import EngineKind
from torpor.local.install import models_folder

_UNITS_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


def duration(value: Any) -> Any:
    """A duration as Knative writes it (`60s`, `1m`, `500ms`), in seconds; numbers pass."""
    found = (
        re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value.strip())
        if isinstance(value, str)
        else None
    )
    return float(found[1]) * _UNITS_S[found[2]] if found else value


Seconds = Annotated[float, BeforeValidator(duration)]
WholeSeconds = Annotated[int, BeforeValidator(duration)]


class AutoscalerKind(StrEnum):
    """Whose policy decides the number of replicas."""

    KPA = "kpa"  #: Knative's, on concurrency at the activator
    KEDA = "keda"  #: KEDA's and the HPA's, on lag and pending of the queue


_PLACE: Final[JsonDict] = {"panel": "Addresses and places"}
_ENGINE: Final[JsonDict] = {"panel": "Model and engine"}
_SCALE: Final[JsonDict] = {"panel": "Scaling"}
_NAME: Final[JsonDict] = {**_ENGINE, "flags": ["--served-model-name"]}
_PIPELINES: Final[JsonDict] = {**_ENGINE, "flags": ["--pipelines"]}
_TOOLS: Final[JsonDict] = {**_ENGINE, "flags": ["--tools"]}
_RESERVED: Final = {
    "--model": "--model",
    "--served-model-name": "--model-name",
    "--port": "--port",
    "--host": "--host",
    "--api-key": "`torpor keys`",
    "--max-num-seqs": "--container-concurrency",
}
"""Engine arguments that are Torpor's to give, and what says the same here."""


_NAMED: Final = r"[A-Za-z0-9._:/@-]{1,128}=.+"
_ENTRY: Final = (
    "name",
    "model",
    "engine",
    "max_model_len",
    "engine_args",
    "min_replicas",
    "max_replicas",
    "container_concurrency",
)
"""What a models file says of each model."""


class LogLevel(StrEnum):
    """Least severity of a line in the log."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


def _words(value: Any) -> Any:
    """A variable holds several, separated by commas."""
    return tuple(filter(None, value.split(","))) if isinstance(value, str) else value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class StackSettings(BaseSettings):
    """One stack. Every field is a variable: `max_replicas` is `TORPOR_MAX_REPLICAS`."""

    model_config = SettingsConfigDict(
        env_prefix="TORPOR_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    host: str = Field("127.0.0.1", json_schema_extra=_PLACE)
    """Address of the api and the broker; loopback by default."""
    port: int = Field(8000, ge=0, le=65535, json_schema_extra=_PLACE)
    """Port of the api; 0 takes a free one."""
    broker_port: int = Field(8081, ge=0, le=65535, json_schema_extra=_PLACE)
    """Port of the broker's ingress; 0 takes a free one."""
    data_dir: Path = Field(Path(".torpor"), json_schema_extra=_PLACE)
    """Where state, models and logs live; survives restarts."""
    redis_url: SecretStr | None = Field(None, json_schema_extra=_PLACE)
    """A Redis or Valkey of your own instead of the embedded one."""
    metrics: bool = Field(False, json_schema_extra=_PLACE)
    """Write into `metrics/` of the data folder what Prometheus and Grafana need to watch the stack."""
    models_dir: Path = Field(default_factory=models_folder, json_schema_extra=_PLACE)
    """Where converted models are kept, for every stack: `.torpor/models` where it is there, else the user's cache."""
    engine: EngineKind = Field(EngineKind.VLLM, json_schema_extra=_ENGINE)
    """What makes the tokens: the real engine, or the test engine, from a seed."""
    model: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        ("smollm2-135m-instruct",), min_length=1, json_schema_extra=_ENGINE
    )
    """A packaged model by name, a folder, or (with network) a hub id. Several are given as NAME=MODEL, each by a
    flag of its own; NAME=seeded is the test engine, NAME=https://HOST/v1#MODEL a provider.
    """
    models_file: Path | None = Field(None, json_schema_extra=_ENGINE)
    """Models with settings of their own, in YAML: a list `models` of `name`, `model`, `engine`, `max_model_len`,
    `engine_args`, `min_replicas`, `max_replicas`, `container_concurrency`.
    """
    pipelines_file: Path | None = Field(None, json_schema_extra=_PIPELINES)
    """Steps before and after the model, in YAML: one entry a model, with its steps."""
    tools_file: Path | None = Field(None, json_schema_extra=_TOOLS)
    """Tool servers, in YAML: MCP servers and functions that models may call."""
    model_name: str = Field("", pattern=r"^[A-Za-z0-9._:/@-]{0,128}$", json_schema_extra=_NAME)
    """What callers put into `model`; the model's own name when empty."""
    max_model_len: int | None = Field(None, ge=1, json_schema_extra=_ENGINE)
    """Longest prompt plus answer, in tokens; 2,048 unless the model has less."""
    engine_args: str = Field("", json_schema_extra=_ENGINE)
    """More arguments for the engine, as vLLM names them, in one string."""
    warm_parent: bool = Field(True, json_schema_extra=_ENGINE)
    """Keep a parent with vLLM imported, from which predictors fork (about 0.7 GB for a five times
    faster wake).
    """
    max_replicas: int = Field(1, ge=1, le=64, json_schema_extra=_SCALE)
    """Most predictors at once; each real one takes about 2.4 GB with the default model."""
    min_replicas: int = Field(0, ge=0, le=64, json_schema_extra=_SCALE)
    """Predictors that never go."""
    most_running: int = Field(0, ge=0, le=64, json_schema_extra=_SCALE)
    """Most predictors of all models together; models that want more take turns, by deadline and work. 0: no bound."""
    container_concurrency: int = Field(4, ge=1, le=1000, json_schema_extra=_SCALE)
    """Jobs one predictor runs at once (its batch)."""
    window: WholeSeconds = Field(60, ge=6, le=3600, json_schema_extra=_SCALE)
    """Knative's stable window: so long without work before the last predictor may go."""
    grace: WholeSeconds = Field(30, ge=6, le=3600, json_schema_extra=_SCALE)
    """Knative's scale-to-zero grace, after the window."""
    time_scale: float = Field(1.0, ge=0.1, le=100, json_schema_extra=_SCALE)
    """The autoscaler's clock runs this many times faster; for demos and tests."""
    autoscaler: AutoscalerKind = Field(AutoscalerKind.KPA, json_schema_extra=_SCALE)
    """Whose policy runs: Knative's, or KEDA's with the HPA."""
    max_job_seconds: int = Field(900, ge=1, le=86_400)
    """The one number: no job runs longer, and every timeout on the path is above it."""
    lease: Seconds = Field(30, ge=1, le=600)
    """A predictor that is silent for this long has lost its job."""
    drain_grace: Seconds = Field(10, ge=0.5, le=3600)
    """A predictor that shuts down finishes jobs that end within this time; the others are handed over."""
    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = LogLevel.WARNING
    """DEBUG, INFO, WARNING or ERROR."""

    @cached_property
    def plans(self) -> Pipelines:
        """The plan of each model that has one."""
        return load_pipelines(self.pipelines_file) if self.pipelines_file else NO_PIPELINES

    @cached_property
    def tools(self) -> ToolConfig:
        """The tool servers; none without a file."""
        return load_tools(self.tools_file) if self.tools_file else NO_TOOLS

    @property
    def context_tokens(self) -> int | None:
        """The longest prompt plus answer that was asked for; None when nothing was."""
        found = re.search(r"--max[-_]model[-_]len[= ](\d+)(?!\S)", self.engine_args)
        return int(found[1]) if found else self.max_model_len

    def each_model(self) -> tuple["StackSettings", ...]:
        """The settings of each model by itself: `model` is one source, `model_name` its name."""
        if self.models_file is not None:
            return tuple(self._with(entry) for entry in read_models(self.models_file))
        if len(self.model) == 1 and "=" not in self.model[0]:
            return (self,)
        named = [entry.partition("=") for entry in self.model]
        return tuple(self._with({"name": name, "model": source}) for name, _, source in named)

    def _with(self, entry: Mapping[str, Any]) -> "StackSettings":
        """These settings with those of one model."""
        given = dict(entry)
        name, source = given.pop("name"), given.pop("model")
        if source == EngineKind.SEEDED:
            given, source = {**given, "engine": EngineKind.SEEDED}, name
        elif _is_url(source):
            given["engine"] = EngineKind.UPSTREAM
        own = {**given, "model": (source,), "model_name": name}
        own |= {
            "models_file": None,
            "pipelines_file": None,
            "tools_file": None,
        }  # those of all models together
        try:
            return type(self)(**(self.model_dump() | own))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            said = str(first["msg"]).removeprefix("Value error, ")
            raise ValueError(f"model {name}: {where}{': ' if where else ''}{said}") from error

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Raises ValueError, in the words of the flags."""
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"--min-replicas {self.min_replicas} is over --max-replicas {self.max_replicas}"
            )
        if self.models_file is None:
            self._check_models()
        if self.engine is EngineKind.UPSTREAM:
            self._check_provider()
        kept = sum(one.min_replicas for one in self.each_model())
        if self.most_running and kept > self.most_running:
            raise ValueError(
                f"--most-running {self.most_running}: the models keep {kept} predictors at least"
            )
        self._check_engine_args()
        if self.pipelines_file is not None:
            self._check_pipelines(self.pipelines_file)
        if self.tools_file is not None:
            self._check_tools(self.tools_file)
        if self.redis_url is not None:
            try:
                checked_redis_url(self.redis_url.get_secret_value())
            except ValueError as error:
                raise ValueError(f"--redis-url: {error}") from error
        return self

    def _check_engine_args(self) -> None:
        try:
            words = shlex.split(self.engine_args)
        except ValueError as error:
            raise ValueError(f"--engine-args: {error}") from error
        for word in words:
            flag = word.partition("=")[0].replace("_", "-")
            if ours := _RESERVED.get(flag):
                raise ValueError(f"--engine-args: {flag} is Torpor's own; use {ours}")

    def _check_pipelines(self, file: Path) -> None:
        """Raises ValueError for a file that is none, or an entry whose model is not served."""
        try:
            names, audits = self._possible_names(), load_audit_rules(file)
            check_served(self.plans, {**load_cache_rules(file), **audits}, names)
            check_critics(audits, names)
            check_fallbacks(load_fallbacks(file), names)
        except BadRequest as error:
            raise ValueError(f"--pipelines-file: {error.message}") from error

    def _check_tools(self, file: Path) -> None:
        """Raises ValueError for a file that is none."""
        try:
            load_tools(file)
        except BadRequest as error:
            raise ValueError(f"--tools-file: {error.message}") from error

    def _possible_names(self) -> set[str]:
        """What callers may put into `model`. A folder is served under its last name, a model of a hub under both."""
        names: set[str] = set()
        for one in self.each_model():
            source = one.model[0]
            names |= {one.model_name} if one.model_name else {source, Path(source).name}
        return names

    def _check_provider(self) -> None:
        """Raises ValueError for a provider that no call could reach."""
        (source,) = self.model
        try:
            http_url(source.partition("#")[0])
        except ValueError as error:
            raise ValueError(f"--model {source}: {error}") from error
        if not os.environ.get("TORPOR_UPSTREAM_TENANTS"):
            raise ValueError(
                f"--model {source}: no tenant's data may leave this machine; set TORPOR_UPSTREAM_TENANTS "
                'to a JSON list of tenants (for all: ["*"])'
            )

    def _check_models(self) -> None:
        """Raises ValueError when several models are not told apart."""
        is_named = re.fullmatch(_NAMED, self.model[0])
        if self.engine is not EngineKind.UPSTREAM and _is_url(self.model[0]) and not is_named:
            raise ValueError(f"--model {self.model[0]}: a provider is given as NAME=URL#MODEL")
        if len(self.model) > 1 and self.model_name:
            raise ValueError("--model-name names one model; give several as --model NAME=MODEL")
        names = [entry.partition("=")[0] for entry in self.model]
        for entry, name in zip(self.model, names, strict=True):
            if len(self.model) > 1 and not re.fullmatch(_NAMED, entry):
                raise ValueError(f"--model {entry}: of several, each is given as NAME=MODEL")
            if names.count(name) > 1:
                raise ValueError(f"--model {name}=...: two models have this name")


def _is_url(source: str) -> bool:
    return "://" in source


def read_models(path: Path) -> list[dict[str, Any]]:
    """The entries of a models file. Raises ValueError naming the file, the entry and the field."""
    found = _read_yaml(path)
    models = found.get("models") if isinstance(found, dict) else None
    if not isinstance(models, list) or not models:
        raise ValueError(f"--models-file: {path}: it must hold a list `models`")
    for number, entry in enumerate(models, 1):
        where = f"--models-file: {path}: model {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where} must be a mapping with `name` and `model`")
        if unknown := sorted(str(key) for key in entry if key not in _ENTRY):
            raise ValueError(
                f"{where} has an unknown field {unknown[0]}; known: {', '.join(_ENTRY)}"
            )
        for name in ("name", "model"):
            if not isinstance(entry.get(name), str) or not entry[name]:
                raise ValueError(f"{where} needs a `{name}`")
    names = [entry["name"] for entry in models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--models-file: {path}: two models have the name {twice[0]}")
    return models


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"--models-file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--models-file: {path} is not UTF-8") from error
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise ValueError(f"--models-file: {path} is not YAML: {words}") from error
