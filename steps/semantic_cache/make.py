"""Makes the step and its writer of the parts of a process."""

from eventing.live.ended import EndedConsumer
from steps.handler import Handler
from steps.runner.parts import Parts
from steps.semantic_cache.entries import SemanticEntries
from steps.semantic_cache.settings import NAME, parse_settings
from steps.semantic_cache.step import SemanticCacheStep
from steps.semantic_cache.verifier import Verifier
from steps.semantic_cache.writer import SemanticCacheWriter
from steps.validation.model_client import ModelClient


def semantic_cache(parts: Parts) -> Handler:
    """The handler; its writer runs beside it where a plan has the step. Raises `BadRequest` for a plan with settings
    that are none.
    """
    plans = [plan.step(NAME) for plan in parts.settings.plans.values()]
    for planned in filter(None, plans):
        parse_settings(planned.settings)
    entries = SemanticEntries(parts.redis)
    token = parts.settings.verifier_token.get_secret_value()
    client = ModelClient(parts.clock, token=token)
    parts.at_end.append(client.aclose)
    if any(plans):
        writer = SemanticCacheWriter(entries=entries, store=parts.store, embedder=parts.embedder)
        consumer = EndedConsumer(parts.redis, parts.store, [writer], group=NAME)
        parts.background.append(consumer.run)
    return SemanticCacheStep(
        entries=entries,
        store=parts.store,
        embedder=parts.embedder,
        verifier=Verifier(client),
        clock=parts.clock,
    )
