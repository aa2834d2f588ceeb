"""Settings of the steps process, read once at start from `TORPOR_*` variables.

Names that the other processes also use (`host`, `port`) are prefixed here, because in the local stack all of them
have the same environment.
"""

from typing import Annotated, Self

from pydantic import AfterValidator, DirectoryPath, Field, SecretStr, model_validator

from eventing.process.setting import FilesUrl, LogLevel, OptionalHttpUrl, RedisUrl, Token, redis_url
from eventing.process.store_url import parse_store_url
from eventing.settings import PriceSettings, SealingSettings
from steps.embedding.settings import EmbeddingSettings


def _index_url(value: SecretStr) -> SecretStr:
    """Raises `ValueError` for another address than PostgreSQL's or Redis's; the message does not repeat it, since it
    may hold a password.
    """
    url = value.get_secret_value()
    if not url or url.startswith(("postgresql://", "postgres://")):
        return value
    try:
        return SecretStr(redis_url(url))
    except ValueError as error:
        raise ValueError(f"write it as postgresql://... for PostgreSQL, or {error}") from error


OptionalIndexUrl = Annotated[SecretStr, AfterValidator(_index_url)]


class StepsSettings(SealingSettings, PriceSettings, EmbeddingSettings):
    """One steps process. Every field is a variable: `steps_port` is `TORPOR_STEPS_PORT`."""

    steps_host: str = "127.0.0.1"
    """Address to bind; loopback by default."""
    steps_port: int = Field(8082, ge=0, le=65535)
    """Port to bind."""
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    """Redis or Valkey that holds jobs and queues; may carry a password."""
    delivery_token: Token = SecretStr("")
    """Bearer token that deliveries must carry; empty requires none."""
    files_url: FilesUrl = "file://.torpor/files"
    """Storage of files, as an fsspec URL; the api's."""
    event_limit_bytes: int = Field(8 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest CloudEvent accepted."""
    body_timeout_s: float = Field(5.0, gt=0, le=300)
    """Longest time for a delivery's body, plus a second for each 16 KiB of it."""
    index_url: OptionalIndexUrl = SecretStr("")
    """What holds the vector indexes: PostgreSQL with pgvector (`postgresql://...`), or Redis 8 with its vector sets
    (`redis://...`). Empty for the store, with exact search in the memory of each steps process.
    """
    index_memory_bytes: int = Field(1024**3, ge=1024**2)
    """Largest size of the vectors that a steps process holds; the indexes longest unused go first."""
    drain_grace_s: float = Field(10.0, ge=0)
    """Seconds that runs may go on after SIGTERM; then they are given up, to be tried again elsewhere."""
    verifier_token: Token = SecretStr("")
    """Bearer token of the model that verifies matches of the semantic cache."""
    guard_url: OptionalHttpUrl = ""
    """OpenAI-compatible endpoint up to `/v1` of guard models whose setting has no `url`; the api of this installation.
    """
    guard_token: Token = SecretStr("")
    """Bearer token of guard models' endpoints."""
    tool_credentials_dir: DirectoryPath | None = None
    """Folder with the credentials that the tools file names, a file each: a bearer token, or lines `Name: value`."""
    tool_server: str = ""
    """Label of the tool server beside which this process runs: it takes that one's calls and no steps, is ready once
    the server listens, and lets calls end after SIGTERM. Empty for every step and every server.
    """
    tool_send_acks: int = Field(0, ge=0, le=8)
    """Replicas of the store that must have the mark of a call before it is sent; those of `store_acks` are the least,
    and one behind sentinels.
    """
    log_level: LogLevel = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""

    @model_validator(mode="after")
    def _knows_its_tool_server(self) -> Self:
        if self.tool_server and self.tool_server not in self.tools.servers:
            raise ValueError(
                f"TORPOR_TOOL_SERVER: the tools file has no server {self.tool_server!r:.40}"
            )
        return self

    @property
    def send_acks(self) -> int:
        """Replicas that must have the mark of a call: where there are some, a failover must not forget it."""
        has_replicas = bool(parse_store_url(self.redis_url.get_secret_value()).sentinels)
        return max(self.tool_send_acks, int(has_replicas))
