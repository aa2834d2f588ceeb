"""Settings that every process of one store must agree on, read from `TORPOR_*` variables.

The settings classes of api, broker and predictor inherit from this class: each of these processes ends jobs, takes
over leases or keeps records, so a value set for only one of them would apply to only some of the jobs.
"""

from functools import cached_property
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventing.errors import BadRequest
from eventing.job.cache import CacheRules, load_cache_rules
from eventing.job.plan import NO_PIPELINES, Pipelines, load_pipelines
from eventing.job.store import LeaseSettings


class StoreSettings(BaseSettings):
    """Retention of jobs, and the time limit of a store call."""

    model_config = SettingsConfigDict(env_prefix="TORPOR_", frozen=True, extra="ignore")

    store_timeout_s: float = Field(1.5, ge=0.05, le=30)
    """Longest wait for one reply of the store."""
    lease_s: float = Field(30.0, ge=0.5, le=3600)
    """How long a predictor keeps a job without renewing its lease; leases are renewed at a third of it."""
    max_attempts: int = Field(3, ge=1, le=100)
    """Lost or failed attempts after which a job becomes a dead letter."""
    retention_s: int = Field(24 * 3600, ge=60)
    """How long ended jobs are kept."""
    dead_letter_retention_s: int = Field(14 * 24 * 3600, ge=60)
    """How long dead letters are kept."""
    pipelines_file: Path | None = None
    """YAML with an entry for each public model name that has a plan of steps or cached answers (docs/pipelines.md).
    Api, broker and steps need the same.
    """

    @cached_property
    def plans(self) -> Pipelines:
        """The plans in that file; none without one."""
        return load_pipelines(self.pipelines_file) if self.pipelines_file else NO_PIPELINES

    @cached_property
    def cache_rules(self) -> CacheRules:
        """The rules of cached answers in that file; none without one."""
        return load_cache_rules(self.pipelines_file) if self.pipelines_file else {}

    @field_validator("pipelines_file")
    @classmethod
    def _check_pipelines(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                load_pipelines(path)
                load_cache_rules(path)
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
        )
