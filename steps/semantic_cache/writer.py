"""Keeps the answers of jobs that ended, and compares them with those that a rule in shadow would have given.

Reads the stream of ended jobs as a consumer group of its own. It may lag, and sees an ending at least once; nothing
of a job waits for it.
"""

from contextlib import suppress
from typing import Any

import structlog

from eventing.job.cache.cache import parse_cache_control
from eventing.job.job import Job, JobId, JobState
from eventing.job.store import JobReader
from steps.embedding.embedder import Embedder
from steps.handler import NotInstalled
from steps.semantic_cache import metrics
from steps.semantic_cache.agreement import Verdict
from steps.semantic_cache.entries import SemanticEntries
from steps.semantic_cache.question import Question
from steps.semantic_cache.settings import NAME, SemanticSettings, parse_settings
from steps.semantic_cache.shadow import AGREED, DIFFERED, answer_text, answers_agree, count_field
from steps.semantic_cache.step import question, unfit

_log = structlog.get_logger()


class SemanticCacheWriter:
    """A listener of ended jobs. What it is made of belongs to the caller."""

    def __init__(self, *, entries: SemanticEntries, store: JobReader, embedder: Embedder) -> None:
        self._entries = entries
        self._store = store
        self._embedder = embedder

    async def ended(self, job: Job) -> None:
        """Keep the job's answer if its step missed. Raises `Unavailable` to be called again."""
        planned = job.plan.step(NAME) if job.plan else None
        step = next((each for each in job.pipeline if each.step == NAME), None)
        if planned is None or step is None or job.state is not JobState.COMPLETED:
            return
        if step.detail.get("cache") != "miss":
            return
        settings = parse_settings(planned.settings)
        if unfit(job, settings, parse_cache_control(job.cache_control)):
            return
        asked = question(job, self._embedder.revision)
        if not isinstance(asked, Question) or not answer_text(job.result):
            return  # a tool call, or an answer that lies in the object store
        with suppress(NotInstalled):  # told at start, and by the step of each job
            await self._keep(job, asked, settings, str(step.detail.get("version", "")))
            shadow = step.detail.get("shadow")
            if isinstance(shadow, dict):
                await self._compare(job, shadow)

    async def _keep(
        self, job: Job, asked: Question, settings: SemanticSettings, version: str
    ) -> None:
        (vector,) = await self._embedder.embed([asked.text])
        became = await self._entries.keep(
            job.id,
            job.tenant,
            asked.partition,
            vector,
            version=version,
            ttl_s=settings.ttl_s,
            most=settings.most_entries,
        )
        _log.debug("kept", action="semantic-cache", job_id=job.id, became=became)

    async def _compare(self, job: Job, shadow: dict[str, Any]) -> None:
        """Count whether the answer that would have been given says what the fresh one says."""
        source_id = JobId(f"job_{str(shadow.get('entry', '')).removeprefix('semantic_')}")
        source = await self._store.get(source_id, with_result=False)
        kept, fresh = answer_text(source.result if source else None), answer_text(job.result)
        rule = str(shadow.get("rule", ""))
        if not kept or source is None or source.tenant != job.tenant or rule not in list(Verdict):
            return
        one, other = await self._embedder.embed([kept, fresh])
        result = AGREED if answers_agree(kept, fresh, float(one @ other)) else DIFFERED
        field = count_field(job.request.model, rule, result)
        if await self._entries.count(job.tenant, job.id, field):
            metrics.COMPARED.labels(rule, result).inc()
