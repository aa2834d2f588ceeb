"""Settings of the external scaler, read once at start from `TORPOR_*` variables."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventing.process.setting import LogLevel, RedisUrl


class ExternalScalerSettings(BaseSettings):
    """One process for all ScaledObjects of a cluster. A ScaledObject's own metadata wins."""

    model_config = SettingsConfigDict(env_prefix="TORPOR_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    """Address to bind; loopback by default, since it has no authentication."""
    port: int = Field(9090, ge=0, le=65535)
    """Port of the gRPC server."""
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    """Redis or Valkey that holds queues and jobs; may carry a password."""
    store_timeout_s: float = Field(1.5, gt=0, le=30)
    """Longest wait for one answer of the store."""
    queue: str = "predictor"
    """The queue to look at: the name of the Trigger that predictors serve."""
    model: str = "model"
    """The model whose replicas count."""
    tick_s: float = Field(1.0, gt=0, le=60)
    """How often to look; KEDA gets the last look's answer."""
    log_level: LogLevel = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
