"""Settings of the steps process, read once at start from `TORPOR_*` variables.

Names that the other processes also use (`host`, `port`) are prefixed here, because in the local stack all of them
have the same environment.
"""

from pathlib import Path

from pydantic import Field, SecretStr

from eventing.process.setting import HttpUrl, LogLevel, RedisUrl, Token
from eventing.settings import StoreSettings


class StepsSettings(StoreSettings):
    """One steps process. Every field is a variable: `steps_port` is `TORPOR_STEPS_PORT`."""

    steps_host: str = "127.0.0.1"
    """Address to bind; loopback by default."""
    steps_port: int = Field(8082, ge=0, le=65535)
    """Port to bind."""
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    """Redis or Valkey that holds jobs and queues; may carry a password."""
    queue_triggers_file: Path | None = None
    """The Trigger manifests of the embedded broker, when its queues are in `redis_url`; else `broker_url` is used."""
    broker_url: HttpUrl = "http://127.0.0.1:8081/"
    """Ingress of the broker, for the event of the next step."""
    broker_timeout_s: float = Field(5.0, gt=0.1, le=60)
    """Longest wait for an external broker to accept an event."""
    broker_event_limit_bytes: int = Field(0, ge=0)
    """Largest event that the external broker accepts; 0 when it is not known."""
    broker_token: Token = SecretStr("")
    """Bearer token for the broker; empty sends none."""
    broker_token_file: Path | None = None
    """File with that token, read for each event: Kubernetes rotates projected tokens."""
    broker_ca_file: Path | None = None
    """PEM file of the authorities for an https broker's certificate; empty uses the system's."""
    delivery_token: Token = SecretStr("")
    """Bearer token that deliveries must carry; empty requires none."""
    files_url: str = "file://.torpor/files"
    """Storage of files, as an fsspec URL; the api's."""
    event_limit_bytes: int = Field(8 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest CloudEvent accepted."""
    body_timeout_s: float = Field(5.0, gt=0, le=300)
    """Longest time for a delivery's body, plus a second for each 16 KiB of it."""
    drain_grace_s: float = Field(10.0, ge=0)
    """Seconds that runs may go on after SIGTERM; then they are given up, to be tried again elsewhere."""
    log_level: LogLevel = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
