"""Settings of the broker and the pump, read once at start from `TORPOR_*` variables."""

from pathlib import Path

from pydantic import Field, SecretStr

from eventing.process.setting import LogLevel, RedisUrl, Token
from eventing.settings import StoreSettings


class BrokerSettings(StoreSettings):
    """One process of the broker. Every field is a variable: `redis_url` is `TORPOR_REDIS_URL`."""

    host: str = "127.0.0.1"
    """Address that the ingress binds; loopback by default."""
    port: int = Field(8081, ge=0, le=65535)
    """Port of the ingress."""
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    """Redis or Valkey that holds queues and jobs; may carry a password."""
    triggers_file: Path = Path("triggers.yaml")
    """Knative Trigger manifests, one YAML document each."""
    trigger: str = ""
    """The trigger that a pump serves, or several, separated by commas; empty serves all."""
    event_limit_bytes: int = Field(8 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest CloudEvent accepted, as sent and as decoded."""
    event_origins: tuple[str, ...] = ()
    """JSON list of senders (or `["*"]`) that may send CloudEvents after asking by OPTIONS, as Event Grid does."""
    body_timeout_s: float = Field(5.0, gt=0, le=300)
    """Longest time for a request body, plus a second for each 16 KiB of it; a slower sender gets 408."""
    delivery_token: Token = SecretStr("")
    """Bearer token sent with deliveries, by which subscribers authenticate the pump; empty sends none."""
    ingress_token: Token = SecretStr("")
    """Bearer token for events that end jobs, that have one of our sources, or that name a tenant; empty asks for
    none, on loopback.
    """
    ingress_open: bool = False
    """Start without an ingress token on an address that other hosts can reach: for a relay behind a network policy.
    """
    metrics_port: int = Field(0, ge=0, le=65535)
    """Port of a pump's own `/healthz` and `/metrics`, on all addresses; 0 serves none. The ingress
    shows them on its own port.
    """
    drain_grace_s: float = Field(0.0, ge=0)
    """Seconds that a pump beside its engine lets its deliveries end after SIGTERM; 0, and a broker with an ingress,
    gives them back at once.
    """
    log_level: LogLevel = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
