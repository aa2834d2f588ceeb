"""Makes the parts of audits, for an api whose pipelines file has rules for some.

Called by `api.wiring`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from api.audit.audits import AuditDeps, Audits
from api.audit.figures import AuditFigures
from api.audit.golden import load_golden
from api.audit.round import AuditRound, RoundDeps
from api.audit.store import AuditStore
from api.audit.usage import UsageReader
from api.settings import ApiSettings
from eventing.broker.intake import Intake
from eventing.cloudevent.publisher import Publisher
from eventing.errors import BadRequest
from eventing.job.pipelines.audit import check_critics, same_family_warnings
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.replica import READY, ReplicaDirectory
from eventing.store.redis_store import RedisStore
from eventing.telemetry.metric.ledger import Ledger

PACKAGED: Final = Path(__file__).parent / "golden.jsonl"
"""Rows of HaluEval's questions and answers (RUCAIBox/HaluEval, MIT licence): every other answer is made up."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditParts:
    """What samples, what asks, and what shows."""

    listener: Audits
    round: AuditRound
    figures: AuditFigures

    @property
    def loops(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """The background loops, by name."""
        return {"audits": self.round.run, "audit-figures": self.figures.run}


def make_audits(
    settings: ApiSettings,
    redis: SharedRedis,
    store: RedisStore,
    intake: Intake,
    publisher: Publisher,
) -> AuditParts | None:
    """The parts; None where no model is audited, which then costs nothing. Raises `BadRequest` for a critic that is not
    served, or a golden set that is none.
    """
    rules = settings.audit_rules
    if not rules:
        return None
    cards = {card.name: card for card in settings.cards}
    check_critics(rules, cards)
    for said in same_family_warnings(rules):
        _log.warning(said, action="audit")
    try:
        golden = load_golden(settings.audit_golden_file or PACKAGED)
    except BadRequest as error:
        raise BadRequest(f"TORPOR_AUDIT_GOLDEN_FILE: {error.message}", error.field) from error
    audits = AuditStore(redis, settings.retention_s)
    usage = UsageReader(audits, Ledger(redis))
    deps = AuditDeps(rules=rules, audits=audits, jobs=store, publisher=publisher, models=cards)
    listener, directory = Audits(deps), ReplicaDirectory(redis)

    async def is_awake(critic: str) -> bool:
        return any(each.phase == READY for each in await directory.list(critic))

    asking = AuditRound(
        RoundDeps(
            rules=rules,
            least_waiting=settings.audit_least_waiting,
            gpu_share=settings.audit_gpu_share,
            golden=golden,
            contexts={name: card.context_tokens for name, card in cards.items()},
            redis=redis,
            audits=audits,
            usage=usage,
            listener=listener,
            jobs=store,
            intake=intake,
            is_awake=is_awake,
        )
    )
    figures = AuditFigures(audits, usage, rules, golden, asking.version, settings.audit_window_days)
    return AuditParts(listener=listener, round=asking, figures=figures)
