"""The table of handlers: one line a step.

Called by `steps.server`. A handler is made at start and should be cheap to make: what it needs for long (a model, an
index) it loads at its first call.
"""

from collections.abc import Awaitable, Callable, Mapping

from eventing.cloudevent.event import Event
from eventing.cloudevent.tool_event import CALLED
from eventing.job.plan import (
    EMBED_STEP,
    LIST_TOOLS_STEP,
    MODERATE_STEP,
    MODERATION_INPUT,
    MODERATION_OUTPUT,
    ROUTE_STEP,
    TOOLS_STEP,
)
from eventing.store.conversation.policy import STEP as MEMORY
from eventing.store.conversation.store import Conversations
from eventing.store.file_store import FileStore
from eventing.store.objects.object_store import ObjectStore
from eventing.store.vector_store.note import WORK_TYPES
from eventing.store.vector_store.query import RETRIEVE_STEP, SEARCH_STEP
from eventing.store.vector_store.store import VectorStores
from eventing.store.vector_store.text_object import FOLDER as TEXTS
from steps.check import NO_OPS
from steps.embedding.packaged import PackagedEmbedder
from steps.embedding.step import EmbedStep
from steps.grounding.step import NAME as GROUND
from steps.grounding.step import Ground
from steps.handler import Continue, Handler, StepCall, StepOutcome
from steps.memory.memory import Memory
from steps.memory.recall import Recall
from steps.retrieval.events import VectorStoreEvents
from steps.retrieval.ingest import IngestDeps, Ingester
from steps.retrieval.search import SearchDeps, VectorSearch
from steps.retrieval.steps import RetrieveStep, SearchStep
from steps.retrieval.tokens import word_pieces
from steps.route.step import route
from steps.runner.parts import Parts
from steps.semantic_cache.make import semantic_cache
from steps.validation.cascade import SharedCascadeLimit
from steps.validation.inline import InlineModeration
from steps.validation.model_client import ModelClient
from steps.validation.moderate import Moderate, Moderator
from steps.validation.moderate_input import NAME as MODERATE_INPUT
from steps.validation.moderate_input import ModerateInput
from steps.validation.step import NAME as VALIDATE_OUTPUT
from steps.validation.step import ValidateOutput, checks

EventHandler = Callable[[Event], Awaitable[Event | None]]
"""Handles an event that is no step of a job; gives the event that replies to it."""


def handlers(parts: Parts) -> Mapping[str, Handler]:
    """The handler of each step, by its name in `pipelines.yaml`."""
    search = VectorSearch(
        SearchDeps(
            stores=VectorStores(parts.redis),
            index=parts.index,
            embedder=parts.embedder,
            clock=parts.clock,
        )
    )
    conversations, guards = Conversations(parts.redis), _guards(parts)
    moderator = Moderator(guards)
    inline = InlineModeration(moderator, parts.settings.plans)
    return {
        **dict.fromkeys(NO_OPS, no_op),
        EMBED_STEP: EmbedStep(_packaged(parts)),
        ROUTE_STEP: route,
        MODERATE_STEP: Moderate(moderator),
        MODERATION_INPUT: inline.input,
        MODERATION_OUTPUT: inline.output,
        GROUND: Ground(guards),
        "semantic-cache": semantic_cache(parts),
        MEMORY: Memory(conversations, Recall(conversations, parts.embedder)),
        SEARCH_STEP: SearchStep(search),
        RETRIEVE_STEP: RetrieveStep(search),
        MODERATE_INPUT: ModerateInput(guards),
        LIST_TOOLS_STEP: parts.tools.list_tools,
        TOOLS_STEP: parts.tools.tools,
        VALIDATE_OUTPUT: ValidateOutput(
            checks(guards), parts.clock, SharedCascadeLimit(parts.redis)
        ),
    }


def _guards(parts: Parts) -> ModelClient:
    settings = parts.settings
    token = settings.guard_token.get_secret_value()
    made = ModelClient(parts.clock, url=settings.guard_url, token=token)
    parts.at_end.append(made.aclose)
    return made


def event_handlers(parts: Parts) -> Mapping[str, EventHandler]:
    """The handler of each type of event that is no step of a job."""
    url = parts.settings.files_url
    ingester = Ingester(
        IngestDeps(
            stores=VectorStores(parts.redis),
            files=FileStore(url),
            texts=ObjectStore(f"{url.rstrip('/')}/{TEXTS}"),
            index=parts.index,
            embedder=parts.embedder,
            tokenize=word_pieces,
        )
    )
    return {
        **dict.fromkeys(WORK_TYPES, VectorStoreEvents(ingester)),
        CALLED: parts.tools.caller,
    }


async def no_op(call: StepCall) -> StepOutcome:
    """Changes nothing, to measure what a step costs; the setting `detail` is shown to the caller."""
    detail = call.settings.get("detail", {})
    return Continue(detail=detail if isinstance(detail, dict) else {})


def _packaged(parts: Parts) -> PackagedEmbedder:
    """The packaged model, also where the other steps use an endpoint's."""
    if isinstance(parts.embedder, PackagedEmbedder):
        return parts.embedder
    own = PackagedEmbedder(threads=parts.settings.embedding_threads)
    parts.at_end.append(own.aclose)
    return own
