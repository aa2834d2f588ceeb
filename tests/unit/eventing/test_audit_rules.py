"""The rules of audits in a pipelines file: what is read, and what is refused by name."""

from typing import Any

import pytest

from eventing.errors import BadRequest
from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.job.pipelines.audit import (
    AUDIT_TENANT,
    AuditRule,
    check_critics,
    critics_of,
    family,
    parse_audit_rules,
    same_family_warnings,
    searched_tenant,
)
from eventing.job.pipelines.document import parse_pipelines


def audit(**fields: Any) -> dict[str, Any]:
    return {"chat": {"audit": {"critic": "judge"} | fields}}


def test_a_rule_has_a_share_for_all_and_others_for_some_tenants() -> None:
    rules = parse_audit_rules(audit(share=0.1, tenants={"acme": 0.5, "shy": 0}))

    rule = rules["chat"]
    assert (rule.share_of("any"), rule.share_of("acme"), rule.share_of("shy")) == (0.1, 0.5, 0.0)


def test_a_model_that_only_has_audits_has_no_plan() -> None:
    document = {"chat": {"audit": {"critic": "judge"}, "cache": {"exact": {}}}}

    assert parse_pipelines(document) == {}
    assert parse_audit_rules(document)["chat"] == AuditRule(critic="judge")


def test_a_document_without_audits_has_no_rules() -> None:
    assert parse_audit_rules({"chat": {"steps": ["no-op"]}}) == {}
    assert parse_audit_rules(None) == {}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "chat.audit.critic must name"),
        ([], "chat.audit must be an object"),
        ({"critic": "chat"}, "must be another model"),
        ({"critic": "judge", "share": 2}, "chat.audit.share must be a number"),
        ({"critic": "judge", "share": True}, "chat.audit.share must be a number"),
        ({"critic": "judge", "tenants": {"acme": -1}}, "chat.audit.tenants.acme must be a number"),
        ({"critic": "judge", "tenants": ["acme"]}, "chat.audit.tenants must be an object"),
        ({"critic": "judge", "retrieve": True}, "chat.audit.retrieve must be an object"),
        ({"critic": "judge", "max_tokens": 0}, "chat.audit.max_tokens must be a whole number"),
        ({"critic": "judge", "rate": 0.1}, "chat.audit.rate is not supported"),
    ],
)
def test_a_wrong_rule_is_refused_by_field(entry: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        parse_audit_rules({"chat": {"audit": entry}})


def test_a_critic_of_several_models_has_the_longest_answer_that_one_asks_for() -> None:
    rules = {
        "a": AuditRule(critic="judge", max_tokens=100),
        "b": AuditRule(critic="judge", max_tokens=900),
        "c": AuditRule(critic="other"),
    }

    assert critics_of(rules) == {"judge": 900, "other": 512}


def test_a_critic_that_is_not_served_is_refused() -> None:
    rules = parse_audit_rules(audit())

    check_critics(rules, ["chat", "judge"])
    with pytest.raises(BadRequest, match="none of the models that are served: chat"):
        check_critics(rules, ["chat"])


@pytest.mark.parametrize(
    ("model", "name"),
    [("Qwen/Qwen3-8B", "qwen"), ("qwen2.5-coder", "qwen"), ("gpt-4o", "gpt"), ("4o", "")],
)
def test_the_family_is_what_a_models_name_begins_with(model: str, name: str) -> None:
    assert family(model) == name


def test_a_critic_of_the_judged_models_family_is_warned_of() -> None:
    same = {"Qwen/Qwen3-8B": AuditRule(critic="qwen3-32b")}
    other = {"Qwen/Qwen3-8B": AuditRule(critic="llama-3.3")}

    (said,) = same_family_warnings(same)
    assert "qwen3-32b" in said
    assert same_family_warnings(other) == []


def test_only_an_audit_may_search_the_vector_stores_of_another_tenant() -> None:
    def job(tenant: str) -> Job:
        return Job(
            id=JobId("job_1"),
            state=JobState.QUEUED,
            request=JobRequest(url="", body={}),
            tenant=tenant,
            metadata={"torpor.audit.of": "acme"},
        )

    assert searched_tenant(job(AUDIT_TENANT)) == "acme"
    assert searched_tenant(job("mallory")) == "mallory"
