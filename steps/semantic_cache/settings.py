"""The settings of the step in a plan.

steps:
  - step: semantic-cache
    settings: {ttl_s: 3600, sampled: true, tenants: [acme], verifier: {url: ..., model: ...}}
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eventing.errors import InvalidJob
from eventing.job.cache.cache import DEFAULT_TTL_S, LONGEST_TTL_S
from eventing.process.setting import HttpUrl
from steps.semantic_cache.rule import Least
from steps.semantic_cache.shadow import Budget

NAME: Final = "semantic-cache"
_LEAST: Final = Least()
_BUDGET: Final = Budget()
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VerifierSettings(_Strict):
    """A model that answers yes or no."""

    url: HttpUrl
    """An OpenAI-compatible endpoint up to `/v1`."""
    model: str = Field(min_length=1)
    timeout_ms: int = Field(2000, ge=50, le=60_000)
    """Longest wait for its word; then the look-up is a miss."""


class ShadowSettings(_Strict):
    """When a rule may serve a tenant."""

    error_rate: Share = _BUDGET.error_rate
    """Upper end of the 95 % interval of wrong answers at which a rule serves."""
    least: int = Field(_BUDGET.least, ge=1)
    """Fewest comparisons before."""
    holdout: Share = _BUDGET.holdout
    """Share of hits that are compared instead of served, for good."""

    @property
    def budget(self) -> Budget:
        return Budget(error_rate=self.error_rate, least=self.least, holdout=self.holdout)


class SemanticSettings(_Strict):
    """The step's settings; every one has a default."""

    ttl_s: int = Field(DEFAULT_TTL_S, ge=1, le=LONGEST_TTL_S)
    """How long an answer is given again."""
    most_entries: int = Field(5000, ge=1, le=100_000)
    """Answers kept a tenant; the ones that expire first make room."""
    lookup_ms: int = Field(50, ge=1, le=10_000)
    """Longest look-up, without the verifier; then the step is skipped."""
    similarity: float = Field(_LEAST.same, ge=0.5, le=1)
    """Least cosine of two questions that differ in harmless words."""
    near_similarity: float = Field(_LEAST.near, ge=0.5, le=1)
    """Least cosine where articles differ too."""
    verified_similarity: float = Field(_LEAST.verified, ge=0.5, le=1)
    """Least cosine at which the verifier is asked."""
    sampled: bool = False
    """Calls with a temperature other than 0, or several answers, as well."""
    tools: bool = False
    """Calls with tools as well."""
    tenants: tuple[str, ...] | None = None
    """The tenants that have the step; absent for all."""
    shadow: ShadowSettings | None = ShadowSettings()
    """null serves every rule from the start."""
    verifier: VerifierSettings | None = None

    @property
    def least(self) -> Least:
        """The cosines that the rules ask for."""
        return Least(
            same=self.similarity, near=self.near_similarity, verified=self.verified_similarity
        )


def parse_settings(given: Mapping[str, Any]) -> SemanticSettings:
    """The settings in a plan. Raises `InvalidJob` naming the field."""
    try:
        return SemanticSettings.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidJob(f"{NAME}: {where}: {first['msg']}", where) from None
