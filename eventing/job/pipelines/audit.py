"""Which models' answers are audited, how many of them, and by which critic: `audit` in a pipelines file.

Called by the settings of api and broker (which refuse to start with a wrong file), by `torpor doctor`, and by the api,
which audits. Pure, once the file is read.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from eventing.job.job import Job, JobId, derive_job_id
from eventing.job.pipelines.document import pipelines_error, read_pipelines

AUDIT_TENANT: Final = "/torpor/audit"
"""The tenant of the jobs that critics do. No caller can be it."""
SEARCHED_TENANT: Final = "torpor.audit.of"
"""Metadata of a critic's job that has to search for passages first: the tenant whose vector stores it searches."""
DEFAULT_SHARE: Final = 0.02
DEFAULT_MAX_TOKENS: Final = 512
_MOST_TOKENS: Final = 32_768
_FIELDS: Final = frozenset({"critic", "share", "tenants", "retrieve", "max_tokens"})
_LETTERS: Final = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRule:
    """How the answers of one model are audited. `share` of them are, or the share that `tenants` has for their tenant
    (0 for none). `retrieve` has the settings of a search for answers without passages; without it those are left out.
    """

    critic: str
    share: float = DEFAULT_SHARE
    tenants: Mapping[str, float] = field(default_factory=dict)
    retrieve: Mapping[str, Any] | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS  #: of the critic's answer

    def share_of(self, tenant: str) -> float:
        """The share of a tenant's answers that is audited."""
        return self.tenants.get(tenant, self.share)


AuditRules = Mapping[str, AuditRule]
"""By the model that callers ask for."""


def load_audit_rules(path: Path) -> AuditRules:
    """The rules in a pipelines file. Raises `BadRequest` naming the field, or that the file cannot be read."""
    return parse_audit_rules(read_pipelines(path))


def parse_audit_rules(document: Any) -> AuditRules:
    """The rules of a document `{MODEL: {audit: {critic, share, tenants, retrieve}}}`. Raises `BadRequest` naming the
    field.
    """
    entries = document if isinstance(document, Mapping) else {}
    return {
        str(model): _rule(str(model), entry["audit"])
        for model, entry in entries.items()
        if isinstance(entry, Mapping) and "audit" in entry
    }


def check_critics(rules: AuditRules, served: Collection[str]) -> None:
    """Raises `BadRequest` for a critic that is not served."""
    for model, rule in rules.items():
        if rule.critic not in served:
            known = ", ".join(sorted(served))
            raise pipelines_error(
                f"{model}.audit.critic", f"is none of the models that are served: {known}"
            )


def critics_of(rules: AuditRules) -> dict[str, int]:
    """The critics, each with the tokens of its longest answer: it is measured once, for all models that it judges."""
    found: dict[str, int] = {}
    for rule in rules.values():
        found[rule.critic] = max(found.get(rule.critic, 0), rule.max_tokens)
    return found


def family(model: str) -> str:
    """The family that a model's name says: the letters that it begins with, after its publisher."""
    found = _LETTERS.match(model.lower().rsplit("/", 1)[-1])
    return found[0] if found else ""


def same_family_warnings(rules: AuditRules) -> list[str]:
    """One sentence for each critic that, by its name, is of the family of the model that it judges: models are lenient
    with mistakes that they would make themselves.
    """
    return [
        f"the critic {rule.critic} of {model} is of the same family ({family(model)}), and may miss what it would get "
        "wrong itself"
        for model, rule in rules.items()
        if family(model) and family(model) == family(rule.critic)
    ]


def searched_tenant(job: Job) -> str:
    """The tenant whose vector stores a job may search: its own, or, for an audit, that of the answer it judges."""
    if job.tenant != AUDIT_TENANT:
        return job.tenant
    return job.metadata.get(SEARCHED_TENANT, job.tenant)


def audit_job_id(name: str) -> JobId:
    """The id of the job in which a critic judges the answer of this name."""
    return derive_job_id(AUDIT_TENANT, name)


def _rule(model: str, entry: Any) -> AuditRule:
    where = f"{model}.audit"
    if not isinstance(entry, Mapping):
        raise pipelines_error(where, "must be an object with critic")
    for name in entry.keys() - _FIELDS:
        raise pipelines_error(f"{where}.{name}", "is not supported")
    critic = entry.get("critic")
    if not isinstance(critic, str) or not critic:
        raise pipelines_error(f"{where}.critic", "must name the model that judges")
    if critic == model:
        raise pipelines_error(f"{where}.critic", "must be another model than the one it judges")
    tenants, retrieve = entry.get("tenants", {}), entry.get("retrieve")
    if not isinstance(tenants, Mapping):
        raise pipelines_error(f"{where}.tenants", "must be an object with a share for each tenant")
    if retrieve is not None and not isinstance(retrieve, Mapping):
        raise pipelines_error(
            f"{where}.retrieve", "must be an object with settings of the step retrieve"
        )
    tokens = entry.get("max_tokens", DEFAULT_MAX_TOKENS)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= _MOST_TOKENS:
        raise pipelines_error(f"{where}.max_tokens", f"must be a whole number up to {_MOST_TOKENS}")
    return AuditRule(
        critic=critic,
        share=_share(f"{where}.share", entry.get("share", DEFAULT_SHARE)),
        tenants={
            str(tenant): _share(f"{where}.tenants.{tenant}", share)
            for tenant, share in tenants.items()
        },
        retrieve=retrieve,
        max_tokens=tokens,
    )


def _share(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise pipelines_error(where, "must be a number from 0 to 1")
    return float(value)
