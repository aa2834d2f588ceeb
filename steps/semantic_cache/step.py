"""The step: looks for an answered question of the same meaning, and answers with it, or lets the job go on.

A cache never holds a job up: a look-up that is slow, or whose store or embedder is away, is left out.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Final

import structlog

from eventing.clock import Clock
from eventing.errors import InvalidJob, Unavailable
from eventing.job.cache.cache import (
    CacheControl,
    CacheKind,
    CacheStatus,
    CacheUse,
    is_sampled,
    parse_cache_control,
)
from eventing.job.job import Job, JobState
from eventing.job.store import JobReader, TokenBatch
from eventing.job.stream import EntryKind
from eventing.telemetry.metric.series import labelled
from steps.embedding.embedder import Embedder
from steps.handler import Answer, Continue, NotInstalled, Skip, StepCall, StepOutcome
from steps.semantic_cache import metrics
from steps.semantic_cache.agreement import Verdict
from steps.semantic_cache.entries import Found, SemanticEntries
from steps.semantic_cache.question import Question, question_of
from steps.semantic_cache.rule import Candidate, Match, best_match
from steps.semantic_cache.settings import SemanticSettings, parse_settings
from steps.semantic_cache.shadow import COMPLAINED, count_field, is_held_out, may_serve
from steps.semantic_cache.spelling import is_word, vocabulary
from steps.semantic_cache.verifier import Verifier

_log = structlog.get_logger()
_CANDIDATES: Final = 8
_MOST_TOKENS: Final = 100_000
_CONTEXT_STEPS: Final = frozenset(("memory", "retrieve"))
_RESPONSES: Final = "torpor.response"
NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A job that may give its answer, as it was found."""

    found: Found
    job: Job


class SemanticCacheStep:
    """The handler of `semantic-cache`. What it is made of belongs to the caller."""

    def __init__(
        self,
        *,
        entries: SemanticEntries,
        store: JobReader,
        embedder: Embedder,
        verifier: Verifier,
        clock: Clock,
    ) -> None:
        self._entries = entries
        self._store = store
        self._embedder = embedder
        self._verifier = verifier
        self._clock = clock

    async def __call__(self, call: StepCall) -> StepOutcome:
        """Answer the job, or say what was found."""
        try:
            settings = parse_settings(call.settings)
        except InvalidJob as error:  # of a plan that an earlier process made
            return self._skipped(error.message[:200])
        control = parse_cache_control(call.job.cache_control)
        reason = unfit(call.job, settings, control)
        if call.job.prepared is not None:
            reason = (
                "prepared"  # what a step before changed is not in the record of a job that ended
            )
        asked = reason or question(call.job, self._embedder.revision)
        if isinstance(asked, str):
            return self._skipped(asked)
        try:
            async with asyncio.timeout(settings.lookup_ms / 1000):
                if control.no_cache or control.max_age_s == 0:
                    return await self._refused(call.job, asked)
                version, match = await self._look_up(call.job, asked, settings, control)
        except TimeoutError:
            return self._skipped("slow")
        except (Unavailable, NotInstalled) as error:
            return self._skipped(error.code)
        if match is None:
            return self._missed(version)
        return await self._matched(call.job, asked, settings, version, match)

    async def _look_up(
        self, job: Job, asked: Question, settings: SemanticSettings, control: CacheControl
    ) -> tuple[str, Match[Source] | None]:
        """The best entry for the question, if any."""
        if not vocabulary.cache_info().currsize:
            await asyncio.to_thread(vocabulary)
        vector = (await self._embedder.embed([asked.text]))[0]
        least = settings.least.verified if settings.verifier else settings.least.same
        nearby = await self._entries.near(
            job.tenant,
            job.request.model,
            asked.partition,
            vector,
            least=least,
            limit=_CANDIDATES,
        )
        jobs = await asyncio.gather(
            *(self._store.get(found.job, with_result=False) for found in nearby.found)
        )
        oldest_s = settings.ttl_s if control.max_age_s is None else control.max_age_s
        candidates = [
            Candidate(text, found.similarity, Source(found=found, job=source))
            for found, source in zip(nearby.found, jobs, strict=True)
            if source and (text := self._text_of(source, job, asked, oldest_s))
        ]
        has_verifier = settings.verifier is not None
        match = best_match(
            asked.text, candidates, is_word, least=settings.least, has_verifier=has_verifier
        )
        return nearby.version, match

    def _text_of(self, source: Job, job: Job, asked: Question, oldest_s: int) -> str:
        """The question that a job answered; empty where its answer is not for this one, whatever the vectors say."""
        if source.state is not JobState.COMPLETED or source.tenant != job.tenant:
            return ""
        if self._age_s(source) > oldest_s or source.id == job.id:
            return ""
        answered = question(source, self._embedder.revision)
        same = isinstance(answered, Question) and answered.partition == asked.partition
        return answered.text if same and isinstance(answered, Question) else ""

    async def _matched(
        self,
        job: Job,
        asked: Question,
        settings: SemanticSettings,
        version: str,
        match: Match[Source],
    ) -> StepOutcome:
        """Serve the match, or only compare it, or neither."""
        source = match.candidate.of
        told = {
            "entry": source.found.name,
            "rule": str(match.rule),
            "similarity": round(match.candidate.similarity, 4),
        }
        if match.rule is Verdict.OPEN:
            assert settings.verifier is not None  # noqa: S101 (else no open match is found)
            kept = match.candidate.text
            if not await self._verifier.agrees(settings.verifier, kept, asked.text):
                return self._missed(version, verifier="no")
        try:
            if settings.shadow and not await self._may_serve(job, match.rule, settings):
                metrics.LOOKUPS.labels("shadow", match.rule).inc()
                return Continue(detail={"cache": "miss", "version": version, "shadow": told})
            answer = await self._answer(job, asked, settings, match)
        except Unavailable as error:
            return self._skipped(error.code)
        return answer or self._missed(version)

    async def _may_serve(self, job: Job, rule: Verdict, settings: SemanticSettings) -> bool:
        assert settings.shadow is not None  # noqa: S101 (asked before)
        budget = settings.shadow.budget
        counts = await self._entries.counts(job.tenant)
        passed = may_serve(counts, job.request.model, rule, budget)
        return passed and not is_held_out(job.id, budget.holdout)

    async def _answer(
        self, job: Job, asked: Question, settings: SemanticSettings, match: Match[Source]
    ) -> Answer | None:
        """The answer of the source; None when it was moved to the object store."""
        found, source = match.candidate.of.found, match.candidate.of.job
        if not source.result:
            return None
        tokens, _ = await asyncio.gather(
            self._tokens(source),
            self._entries.note_served(job.tenant, served_digest(asked), found.name, match.rule),
        )
        age_s = self._age_s(source)
        usage = source.usage or {}
        use = CacheUse(
            status=CacheStatus.HIT,
            kind=CacheKind.SEMANTIC,
            key=found.name,
            age_s=age_s,
            left_s=max(0, settings.ttl_s - age_s),
            source_job=source.id,
            similarity=round(match.candidate.similarity, 4),
            saved_usage=usage,
        )
        metrics.LOOKUPS.labels("hit", match.rule).inc()
        detail = {"cache": "hit", "rule": str(match.rule), "similarity": use.similarity}
        return Answer(result=source.result, usage=NO_USAGE, detail=detail, tokens=tokens, cache=use)

    async def _tokens(self, source: Job) -> tuple[TokenBatch, ...]:
        """The token stream of the answer, to be shown again; of an attempt that started over, the last."""
        batches: list[TokenBatch] = []
        for entry in await self._store.read_stream(source.id, limit=_MOST_TOKENS):
            if entry.kind is EntryKind.ATTEMPT and entry.is_restart:
                batches = [each for each in batches if each.index < entry.index]
            if entry.kind is EntryKind.TOKENS:
                batches.append(
                    TokenBatch(index=entry.index, token_ids=entry.token_ids, delta=entry.delta)
                )
        return tuple(batches)

    async def _refused(self, job: Job, asked: Question) -> StepOutcome:
        """The caller accepts no stored answer. Soon after it got one, that is a complaint."""
        complaint = await self._entries.complain(job.tenant, served_digest(asked))
        if complaint:
            name, rule = complaint
            await self._entries.count(
                job.tenant, job.id, count_field(job.request.model, rule, COMPLAINED)
            )
            labelled(metrics.COMPLAINTS, job.request.model).inc()
            _log.warning("entry withdrawn", action="complaint", entry=name, rule=rule)
        version = await self._entries.version(job.tenant, job.request.model)
        return self._missed(version, complaint=bool(complaint))

    def _age_s(self, source: Job) -> int:
        return max(0, self._clock.wall_ms() - source.finished_ms) // 1000

    def _missed(self, version: str, **more: object) -> Continue:
        metrics.LOOKUPS.labels("miss", "").inc()
        said = {name: value for name, value in more.items() if value}
        return Continue(detail={"cache": "miss", "version": version, **said})

    def _skipped(self, reason: str) -> Skip:
        metrics.LOOKUPS.labels("skip", "").inc()
        return Skip(reason=reason)


def unfit(job: Job, settings: SemanticSettings, control: CacheControl) -> str:
    """Why neither an answer is looked for nor this one kept; empty when both may be."""
    if settings.tenants is not None and job.tenant not in settings.tenants:
        return "tenant"
    if control.no_store:
        return "no-store"
    if job.plan and not _CONTEXT_STEPS.isdisjoint(job.plan.names):
        return "context"
    request, body = job.request, job.request.body
    if body.get("conversation") or body.get("previous_response_id"):
        return "context"
    if not settings.sampled and is_sampled(request.url, body):
        return "sampled"
    if not settings.tools and body.get("tools") and body.get("tool_choice") != "none":
        return "tools"
    return ""


def question(job: Job, revision: str) -> Question | str:
    """The question of a job, or why it has none."""
    return question_of(
        job.request.url,
        job.request.body,
        tenant=job.tenant,
        plan_version=job.plan.version if job.plan else "",
        api=_RESPONSES if _RESPONSES in job.metadata else "",
        revision=revision,
    )


def served_digest(asked: Question) -> str:
    """Names a question in its partition without its words."""
    return hashlib.sha256(f"{asked.partition}\0{asked.text}".encode()).hexdigest()[:32]
