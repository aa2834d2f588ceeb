"""Settings of the embedded stack: one frozen value, from flags of `torpor up` or `TORPOR_*`
variables.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

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


class EngineKind(StrEnum):
    """What makes the tokens."""

    VLLM = "vllm"  #: the real engine
    SEEDED = "seeded"  #: the test engine: tokens from a seed, no model


class AutoscalerKind(StrEnum):
    """Whose policy decides the number of replicas."""

    KPA = "kpa"  #: Knative's, on concurrency at the activator
    KEDA = "keda"  #: KEDA's and the HPA's, on lag and pending of the queue


class StackSettings(BaseSettings):
    """One stack. Every field is a variable: `max_replicas` is `TORPOR_MAX_REPLICAS`."""

    model_config = SettingsConfigDict(
        env_prefix="TORPOR_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address of the api and the broker; loopback unless told otherwise."""
    port: int = Field(8000, ge=0, le=65535)
    """Port of the api; 0 takes a free one."""
    broker_port: int = Field(8081, ge=0, le=65535)
    """Port of the broker's ingress; 0 takes a free one."""
    data_dir: Path = Path(".torpor")
    """Where state, models and logs live; survives restarts."""
    redis_url: SecretStr | None = None
    """A Redis or Valkey of your own instead of the embedded one."""
    models_dir: Path = Path(".torpor/models")
    """Where converted models are kept, for every stack of this checkout."""
    engine: EngineKind = EngineKind.VLLM
    """What thinks: the real engine, or the test engine that makes tokens from a seed."""
    model: str = "smollm2-135m-instruct"
    """A packaged model by name, a folder, or (with network) a hub id."""
    max_replicas: int = Field(1, ge=1, le=64)
    """Most predictors at once; each real one takes about 2.4 GB with the default model."""
    min_replicas: int = Field(0, ge=0, le=64)
    """Predictors that never go."""
    container_concurrency: int = Field(4, ge=1, le=1000)
    """Jobs one predictor thinks about at once (its batch)."""
    window: WholeSeconds = Field(60, ge=6, le=3600)
    """Knative's stable window: so long without work before the last predictor may go."""
    grace: WholeSeconds = Field(30, ge=6, le=3600)
    """Knative's scale-to-zero grace, after the window."""
    time_scale: float = Field(1.0, ge=0.1, le=100)
    """The autoscaler's clock runs this many times faster; for demos and tests."""
    autoscaler: AutoscalerKind = AutoscalerKind.KPA
    """Whose policy runs: Knative's, or KEDA's with the HPA."""
    warm_parent: bool = True
    """Keep a parent with vLLM imported, from which predictors fork (about 0.7 GB for a five times
    faster wake).
    """
    max_job_seconds: int = Field(900, ge=1, le=86_400)
    """The one number: no job runs longer, and every timeout on the path is above it."""
    lease: Seconds = Field(30, ge=1, le=600)
    """A predictor that is silent for this long has lost its job."""
    drain_grace: Seconds = Field(10, ge=0.5, le=3600)
    """A predictor told to end may finish what ends within this time; the rest is handed over."""
    engine_args: str = ""
    """More arguments for the engine, as vLLM names them, in one string."""
    log_level: str = "WARNING"
    """DEBUG, INFO, WARNING or ERROR."""
