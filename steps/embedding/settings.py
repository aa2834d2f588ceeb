"""Which embedder a process uses, read from `TORPOR_EMBEDDING_*` variables."""

from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventing.process.setting import OptionalHttpUrl, Token


class EmbeddingSettings(BaseSettings):
    """The packaged model unless a URL is given."""

    model_config = SettingsConfigDict(env_prefix="TORPOR_", frozen=True, extra="ignore")

    embedding_url: OptionalHttpUrl = ""
    """An OpenAI-compatible endpoint up to `/v1`; empty for the packaged all-MiniLM-L6-v2."""
    embedding_model: str = ""
    """The model's name at that endpoint."""
    embedding_dim: int = Field(384, ge=1, le=8192)
    """Numbers a vector of that model has; an answer of another length is refused."""
    embedding_token: Token = SecretStr("")
    """Bearer token of that endpoint."""
    embedding_timeout_s: float = Field(10.0, ge=0.1, le=300)
    """Longest wait for one answer of that endpoint."""
    embedding_threads: int = Field(1, ge=1, le=64)
    """CPU threads of the packaged model."""

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if self.embedding_url and not self.embedding_model:
            raise ValueError("TORPOR_EMBEDDING_URL needs TORPOR_EMBEDDING_MODEL")
        return self
